"""What a person sees in a terminal. Renders for a rich console; prints nothing by itself."""
