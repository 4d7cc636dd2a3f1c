package redisstore_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store/redisstore"
)

var background = context.Background()

// A server is a real Redis of this test's own, on a loopback port and with its own directory.
type server struct {
	tb   testing.TB
	dir  string
	port int
	args []string
	cmd  *exec.Cmd
	done chan struct{}
}

// binary finds redis-server, or skips the test; where the machine promises to have one, that is a failure.
func binary(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal("redis-server is not installed, and CI must have it")
		}
		tb.Skip("redis-server is not installed")
	}
	return path
}

// start runs a Redis until the test ends. Settings follow as "--name", "value".
func start(tb testing.TB, args ...string) *server {
	tb.Helper()
	binary(tb)
	s := &server{tb: tb, dir: tb.TempDir(), args: args}
	tb.Cleanup(s.kill)
	// Somebody else may take a free port before Redis does.
	for range 10 {
		s.port = freePort(tb)
		if s.run() {
			return s
		}
	}
	out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	tb.Fatalf("redis-server does not start: %s", out)
	return nil
}

// freePort is free, and so is the one 10,000 above it, where a cluster node talks to others.
func freePort(tb testing.TB) int {
	for range 200 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(tb, err)
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if port > 55000 {
			continue
		}
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port+10000)); err == nil {
			_ = l.Close()
			return port
		}
	}
	tb.Fatal("no free port")
	return 0
}

// run starts the process and waits until it answers.
func (s *server) run() bool {
	args := append([]string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--logfile", filepath.Join(s.dir, "log"), "--daemonize", "no"}, s.args...)
	s.cmd = exec.Command(binary(s.tb), args...)
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
	}(s.cmd, s.done)
	c := redis.NewClient(&redis.Options{Addr: s.addr(), MaxRetries: -1})
	defer func() { _ = c.Close() }()
	return eventually(20*time.Second, s.done, func() bool {
		// It answers, and it is ours.
		got, err := c.ConfigGet(background, "dir").Result()
		return err == nil && got["dir"] == s.dir
	})
}

// eventually asks until it is so, or something has ended.
func eventually(within time.Duration, end <-chan struct{}, so func() bool) bool {
	ctx, cancel := context.WithTimeout(background, within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if so() {
			return true
		}
		select {
		case <-tick.C:
		case <-end:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// kill is kill -9.
func (s *server) kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

func (s *server) restart() {
	s.tb.Helper()
	if !s.run() {
		out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.tb.Fatalf("redis-server does not start again: %s", out)
	}
}

func (s *server) addr() string { return fmt.Sprint("127.0.0.1:", s.port) }

func (s *server) client(opts ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: s.addr()}
	for _, f := range opts {
		f(o)
	}
	c := redis.NewClient(o)
	s.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// quiet is a server that keeps nothing, for tests that do not ask it to.
func quiet(tb testing.TB) *server { return start(tb, "--save", "", "--appendonly", "no") }

// cluster starts three masters that share the slots.
func cluster(tb testing.TB) []*server {
	tb.Helper()
	nodes := make([]*server, 3)
	for i := range nodes {
		nodes[i] = start(tb, "--save", "", "--appendonly", "no", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "5000")
	}
	const slots = 16384
	for i, n := range nodes {
		c := n.client()
		require.NoError(tb, c.ClusterAddSlotsRange(background, i*slots/3, (i+1)*slots/3-1).Err())
		require.NoError(tb, c.Do(background, "cluster", "set-config-epoch", i+1).Err())
	}
	for _, n := range nodes[1:] {
		require.NoError(tb, nodes[0].client().ClusterMeet(background, "127.0.0.1", strconv.Itoa(n.port)).Err())
	}
	for _, n := range nodes {
		c := n.client()
		require.True(tb, eventually(60*time.Second, n.done, func() bool {
			info, err := c.ClusterInfo(background).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") && strings.Contains(info, "cluster_slots_ok:16384")
		}), "the cluster does not come up")
	}
	return nodes
}

func clusterClient(tb testing.TB, nodes []*server) *redis.ClusterClient {
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
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
