"""The functional core: order, placement, lifecycle, positions, estimates. Pure: no I/O, no clock, no framework."""
