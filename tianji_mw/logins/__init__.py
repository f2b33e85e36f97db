"""Who we are at the clouds: settings of a login, and the SDK's object made of them. For stores and destinations."""
