"""``fedpalm demo``: a whole federation on one machine, through the commands its people would type."""
