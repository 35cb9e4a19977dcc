"""`make autoscale`: as many workers as there is work."""
