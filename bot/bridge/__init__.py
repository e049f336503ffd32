"""The bridge to Discord: delivers what is to go there, brings in what is said there, and talks with people there."""
