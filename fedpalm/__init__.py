"""FedPalm: federated training of biometric verification between institutions."""

__version__ = "0.1.0"
