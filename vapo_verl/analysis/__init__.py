"""Numbers from what a run leaves behind (pure): statistics, attention curves, anchors."""
