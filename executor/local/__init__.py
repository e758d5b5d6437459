"""The DataHub stand-in and the embedded queue of the demo and the tests."""
