"""What a rank's memory holds while a trial trains, computed from shapes alone."""
