"""What every layer above uses: files, processes, tensors and the console."""
