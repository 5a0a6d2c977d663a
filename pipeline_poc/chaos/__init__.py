"""The fault suite: breaks everything while posts flow, then checks the eight promises."""
