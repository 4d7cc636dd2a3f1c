package servers_test

import (
	"testing"

	"github.com/behest-go/behest/internal/servers"
)

// A request of which nobody hears the answer. (Compiled and not run, since it needs a test.)
func Example() {
	var t *testing.T
	server := servers.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	proxy := servers.StartProxy(t, server.Addr())
	proxy.Once("the-7th", servers.CutAnswer(0))
	server.Kill()
	server.Start()
}
