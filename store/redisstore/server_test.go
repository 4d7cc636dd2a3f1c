package redisstore_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
)

func TestMain(m *testing.M) {
	crash.Main(func(where string) (store.Store, error) {
		return redisstore.Open(background, redis.NewClient(&redis.Options{Addr: where, ClientName: victim}), redisstore.Options{Prefix: "crash"})
	})
	os.Exit(m.Run())
}

// victim is the name of clients that will be killed.
const victim = "behest-victim"

var background = context.Background()

// A server is a real Redis of this test's own.
type server struct {
	*servers.Server
	tb testing.TB
}

// start runs a Redis until the test ends. Settings follow as "--name", "value".
func start(tb testing.TB, args ...string) *server {
	tb.Helper()
	return &server{servers.StartRedis(tb, args...), tb}
}

// eventually asks until it is so, or the server has ended.
func (s *server) eventually(within time.Duration, so func() bool) bool {
	ctx, cancel := context.WithTimeout(background, within)
	defer cancel()
	return servers.Eventually(ctx, s.Ended(), so)
}

func (s *server) client(opts ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: s.Addr()}
	for _, f := range opts {
		f(o)
	}
	c := redis.NewClient(o)
	s.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// quiet is a server that keeps nothing, for tests that do not ask it to.
func quiet(tb testing.TB) *server { return start(tb, "--save", "", "--appendonly", "no") }

// cluster starts masters that share the slots, with these settings.
func cluster(tb testing.TB, masters int, settings ...string) []*server {
	tb.Helper()
	nodes := make([]*server, masters)
	for i := range nodes {
		nodes[i] = start(tb, append([]string{"--save", "", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "5000"}, settings...)...)
	}
	const slots = 16384
	for i, n := range nodes {
		c := n.client()
		require.NoError(tb, c.ClusterAddSlotsRange(background, i*slots/masters, (i+1)*slots/masters-1).Err())
		require.NoError(tb, c.Do(background, "cluster", "set-config-epoch", i+1).Err())
	}
	for _, n := range nodes[1:] {
		require.NoError(tb, nodes[0].client().ClusterMeet(background, "127.0.0.1", strconv.Itoa(n.Port())).Err())
	}
	complete(tb, nodes)
	return nodes
}

// complete waits until all nodes agree that all is well.
func complete(tb testing.TB, nodes []*server) {
	tb.Helper()
	for _, n := range nodes {
		c := n.client()
		require.True(tb, n.eventually(60*time.Second, func() bool {
			info, err := c.ClusterInfo(background).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprint("cluster_known_nodes:", len(nodes))) && strings.Contains(info, "cluster_slots_ok:16384") && linked(c)
		}), "the cluster does not come up")
	}
}

// linked reports whether a node has met all others: what it publishes before, they do not tell those who listen at them. That may be a while after all is well with the slots.
func linked(c *redis.Client) bool {
	nodes, err := c.ClusterNodes(background).Result()
	if err != nil {
		return false
	}
	for line := range strings.Lines(nodes) {
		// ID, address, flags, master, ping, pong, epoch, state of the link
		if f := strings.Fields(line); len(f) < 8 || strings.Contains(f[2], "handshake") || f[7] != "connected" {
			return false
		}
	}
	return true
}

func clusterClient(tb testing.TB, nodes []*server, opts ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addr())
	}
	o := &redis.ClusterOptions{Addrs: addrs}
	for _, f := range opts {
		f(o)
	}
	c := redis.NewClusterClient(o)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

var prefixes atomic.Int64

// fresh is a prefix that nobody else uses.
func fresh() string { return fmt.Sprint("test", prefixes.Add(1)) }

func open(tb testing.TB, c redis.UniversalClient, prefix string) *redisstore.Store {
	tb.Helper()
	s, err := redisstore.Open(background, c, redisstore.Options{Prefix: prefix})
	require.NoError(tb, err)
	return s
}
