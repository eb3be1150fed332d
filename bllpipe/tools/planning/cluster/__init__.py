"""Predictions for clusters of many devices (``bllpipe plan --cluster FILE``)."""
