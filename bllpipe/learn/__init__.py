"""The mathematics: networks and cuts, local losses, feedback, and the block that learns. No processes, no wires."""
