"""Private transfer learning: features of pre-trained models. Imports scatterdp, never the reverse."""
