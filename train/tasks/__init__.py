"""Training tasks: model, loss, batches and metrics of one training objective each."""
