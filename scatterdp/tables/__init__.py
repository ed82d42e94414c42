"""A person's own features and labels, from the files in which people keep them.

| given | features | labels |
|---|---|---|
| ``FILE.npy`` | mapped, not copied | ``--labels`` |
| ``FILE.npz[:KEY]`` | mapped when stored without compression | ``--labels`` |
| ``FILE.h5[:KEY]`` | read in slices | ``--labels`` |
| ``FILE.csv`` | in memory, float32 | ``--labels``, also a column of the same file |
| a feature cache (``.h5``) | read in slices, train and test | inside |
| a folder of images | in memory, uint8 | the folders' names |

Nothing is unpickled. What is read here is private data: no number of it leaves but in messages to its owner, about values
that cannot be used.
"""

from scatterdp.tables.load import Tables, read_table, read_tables
from scatterdp.tables.table import FeatureTable, Rows, row_blocks

__all__ = ["FeatureTable", "Rows", "Tables", "read_table", "read_tables", "row_blocks"]
