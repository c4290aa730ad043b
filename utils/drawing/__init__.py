"""The process that draws a run while it trains: PNG files and the visdom page. Nothing in it imports torch."""
