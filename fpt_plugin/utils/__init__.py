"""What the tools call: data, checkpoints and summaries of the quickstart."""
