"""Apache Beam jobs that write datasets. They know sources and Beam, nothing of models, and import no TensorFlow."""
