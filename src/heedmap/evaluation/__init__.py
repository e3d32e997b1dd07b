"""The numbers that judge a classifier and its maps; nothing here touches the disk or draws."""
