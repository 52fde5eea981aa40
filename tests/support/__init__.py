"""What tests of several folders share: daemons in this process and in processes of their own."""
