package redisstore_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store/redisstore"
)

// replica follows a master through a proxy.
func replica(t *testing.T, master *server) (*server, *servers.Proxy) {
	proxy := servers.StartProxy(t, master.Addr())
	s := start(t, "--save", "", "--appendonly", "no", "--repl-ping-replica-period", "1")
	host, port, err := net.SplitHostPort(proxy.Addr())
	require.NoError(t, err)
	require.NoError(t, s.client().Do(background, "replicaof", host, port).Err())
	c := s.client()
	require.True(t, s.eventually(20*time.Second, func() bool {
		info, err := c.InfoMap(background, "replication").Result()
		return err == nil && info["Replication"]["master_link_status"] == "up"
	}), "the replica does not follow")
	return s, proxy
}

// spends uses a token until it is refused or the time is up. It returns how often it was acknowledged, when last, and what ended it.
func spends(t *testing.T, s *redisstore.Store, run string, within time.Duration) (n int, last time.Duration, err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(background, within)
	defer cancel()
	for ctx.Err() == nil {
		out, err := s.Apply(background, now, use("a1", fmt.Sprint(run, n)))
		if err != nil {
			return n, last, err
		}
		require.True(t, out.Applied(), "%+v", out)
		n++
		last = time.Since(began)
	}
	return n, last, nil
}

// What the package comment says of fail-over is so: what a replica has not heard of can be had again, and min-replicas-to-write bounds how much that is.
func TestFailOver(t *testing.T) {
	const uses = 1 << 40
	for _, bounded := range []bool{false, true} {
		t.Run(fmt.Sprint("bounded ", bounded), func(t *testing.T) {
			master := start(t, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0")
			follower, link := replica(t, master)
			s := open(t, master.client(), "failover")
			account(t, s, "a1", uses)
			c := master.client()
			n, _, err := spends(t, s, "before", 100*time.Millisecond)
			require.NoError(t, err)
			require.Positive(t, n)
			require.True(t, master.eventually(10*time.Second, func() bool {
				k, err := c.Wait(background, 1, time.Second).Result()
				return err == nil && k == 1
			}), "the replica does not keep up")
			if bounded {
				require.NoError(t, c.ConfigSet(background, "min-replicas-max-lag", "1").Err())
				require.NoError(t, c.ConfigSet(background, "min-replicas-to-write", "1").Err())
			}

			within := 2 * time.Second
			if bounded {
				within = 10 * time.Second // at most
			}
			link.Hold(true) // the master is cut off, and does not know
			lost, last, err := spends(t, s, "cut off", within)
			require.Positive(t, lost)
			if bounded {
				require.ErrorContains(t, err, "redisstore: apply: NOREPLICAS")
				require.Less(t, last, 4*time.Second, "Redis counts in whole seconds, and looks once in each")
			} else {
				require.NoError(t, err)
			}
			require.EqualValues(t, uses-n-lost, left(t, s, "a1"), "what was refused was written")

			master.Kill()
			require.NoError(t, follower.client().Do(background, "replicaof", "no", "one").Err())
			after := open(t, follower.client(), "failover")
			require.EqualValues(t, uses-n, left(t, after, "a1"))
			require.Len(t, entries(t, after, "a1"), n)
			t.Logf("the last of %d uses that can be had again came %v after the cut", lost, last)
		})
	}
}

// TestMasterAway: when a master stays away, the cluster says so, and the part of it that is there as well.
func TestMasterAway(t *testing.T) {
	nodes := cluster(t, 3, "--cluster-node-timeout", "500")
	s := open(t, clusterClient(t, nodes, func(o *redis.ClusterOptions) { o.ContextTimeoutEnabled = true }), fresh())
	names := make([]string, 60) // on all of them
	for i := range names {
		names[i] = fmt.Sprint("m", i)
		account(t, s, names[i], 5)
	}
	nodes[2].Kill()
	c := nodes[0].client()
	require.True(t, nodes[0].eventually(20*time.Second, func() bool {
		info, err := c.ClusterInfo(background).Result()
		return err == nil && strings.Contains(info, "cluster_state:fail")
	}), "nobody misses the master")
	refused := 0
	for _, name := range names {
		ctx, cancel := context.WithTimeout(background, time.Second)
		began := time.Now()
		_, err := s.Apply(ctx, now, use(name, "away"))
		cancel()
		require.Less(t, time.Since(began), 3*time.Second)
		require.ErrorContains(t, err, "redisstore: apply: ")
		if strings.Contains(err.Error(), "CLUSTERDOWN") {
			refused++
		}
	}
	require.Positive(t, refused)
	// The rest keeps what it has, and goes on when it is told that a part is enough.
	for _, n := range nodes[:2] {
		c := n.client()
		require.NoError(t, c.ConfigSet(background, "cluster-require-full-coverage", "no").Err())
		require.True(t, n.eventually(20*time.Second, func() bool {
			info, err := c.ClusterInfo(background).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok")
		}), "it does not go on")
	}
	done, missing := 0, 0
	for _, name := range names {
		ctx, cancel := context.WithTimeout(background, time.Second)
		out, err := s.Apply(ctx, now, use(name, "part"))
		cancel()
		if err != nil {
			require.ErrorContains(t, err, "redisstore: apply: ")
			missing++
			continue
		}
		require.True(t, out.Applied())
		require.EqualValues(t, 4, out.Left)
		done++
	}
	require.Positive(t, done)
	require.Positive(t, missing)
	t.Logf("%d of %d calls were told CLUSTERDOWN; then %d accounts were served, %d not", refused, len(names), done, missing)
}
