package sqlite

// WriteSettings are those of the connection that writes, for what is compared with it.
var WriteSettings = writeSettings
