"""DPO and its next of kin: the hinge and IPO."""
