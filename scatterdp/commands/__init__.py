"""The commands of ``python -m scatterdp COMMAND``; one file each."""
