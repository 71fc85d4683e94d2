"""The metrics: how good answers, chosen labels and likelihoods are."""
