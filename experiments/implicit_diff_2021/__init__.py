"""The figures of Blondel et al. 2022, a study for each."""
