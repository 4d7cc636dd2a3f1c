package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/internal/outage"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
)

// A client of a cluster sends a write again no more than one of a single server does.
func TestCutsInCluster(t *testing.T) {
	nodes := cluster(t, 1)
	proxy := servers.StartProxy(t, nodes[0].Addr())
	through := clusterClient(t, nodes, func(o *redis.ClusterOptions) {
		o.MaxRetries, o.MaxRedirects = 5, 5
		o.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, proxy.Addr())
		}
	})
	prefix := fresh()
	got, err := outage.Cuts(t.Context(), named, proxy, open(t, through, prefix), open(t, clusterClient(t, nodes), prefix), 10)
	require.NoError(t, err)
	t.Log(got)
}

// TestMasterCrash kills one master after the other. None has a replica: its slots answer nothing until it is back.
func TestMasterCrash(t *testing.T) {
	nodes := cluster(t, 3, "--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "no")
	a, b := open(t, clusterClient(t, nodes), "crash"), open(t, clusterClient(t, nodes, func(o *redis.ClusterOptions) { o.ContextTimeoutEnabled = true }), "crash")
	i := -1
	got, err := outage.Restarts(t.Context(), named, crash.Granting(), []store.Store{a, b}, len(nodes), func() {
		i++
		nodes[i%len(nodes)].Kill()
	}, func() {
		nodes[i%len(nodes)].Start()
		complete(t, nodes) // a master that is back waits for two seconds before it answers
	})
	require.NoError(t, err)
	require.Greater(t, got.Acknowledged, 50)
	t.Log(got)
}

// TestSlotMoves moves the slot of an account that is in use from master to master, key by key.
func TestSlotMoves(t *testing.T) {
	nodes := cluster(t, 3)
	job, prefix := crash.Spending(), fresh()
	c := clusterClient(t, nodes)
	s := open(t, c, prefix)
	require.NoError(t, job.Prepare(t.Context(), s))
	keys, err := keysOf(nodes, prefix+":*:r:token:a.t")
	require.NoError(t, err)
	require.Len(t, keys, 1)
	slot, err := c.ClusterKeySlot(background, keys[0]).Result()
	require.NoError(t, err)
	do, err := job.Begin(open(t, clusterClient(t, nodes), prefix))
	require.NoError(t, err)

	over, moved := make(chan struct{}), make(chan struct{})
	var said []string
	var unanswered int
	told := make(map[string]int)
	var mu sync.Mutex
	var all sync.WaitGroup
	for w := range crash.Workers {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(background, 10*time.Second)
				err := do(ctx, fmt.Sprintf("w%d-%d", w, i), func(line string) {
					mu.Lock()
					defer mu.Unlock()
					said = append(said, line)
				})
				cancel()
				if err == nil {
					continue
				}
				mu.Lock()
				unanswered++
				if word := "TRYAGAIN"; strings.Contains(err.Error(), named+"apply: "+word) {
					told[word]++
				} else {
					told[err.Error()]++
				}
				mu.Unlock()
			}
		})
	}
	// seen waits until a worker has come upon the slot as it is now.
	seen := func() error {
		mu.Lock()
		before := unanswered
		mu.Unlock()
		if !nodes[0].eventually(20*time.Second, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return unanswered > before+crash.Workers // which may have asked before
		}) {
			return errors.New("nobody sees that the slot is on its way")
		}
		return nil
	}
	go func() {
		defer close(moved)
		for range 4 {
			if err = move(nodes, int(slot), seen); err != nil {
				return
			}
		}
	}()
	<-moved
	require.NoError(t, err)
	// It works where it is now, with the client that saw nothing of it.
	work, err := job.Begin(s)
	require.NoError(t, err)
	mu.Lock()
	before := len(said)
	mu.Unlock()
	require.True(t, nodes[0].eventually(20*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(said) > before+100
	}), "the workers have not found the slot")
	close(over)
	all.Wait()
	require.NoError(t, work(t.Context(), "last", func(line string) { said = append(said, line) }))
	done, err := job.Audit(t.Context(), s, said, unanswered)
	require.NoError(t, err)
	t.Logf("%d writes acknowledged, %d refused, %d done: %v", len(said), unanswered, len(done), told)
	require.NotEmpty(t, told["TRYAGAIN"], "the slot was not seen on its way")
	require.Len(t, told, 1, "%v", told)
	require.Len(t, done, len(said), "what says TRYAGAIN has written nothing")
}

func keysOf(nodes []*server, pattern string) (all []string, err error) {
	for _, n := range nodes {
		keys, err := n.client().Keys(background, pattern).Result()
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
	return all, nil
}

// move takes a slot from the master that has it to another, as redis-cli --cluster reshard does. It stops for seen when nothing, something and all has moved.
func move(nodes []*server, slot int, seen func() error) error {
	ids, clients, from := make([]string, len(nodes)), make([]*redis.Client, len(nodes)), -1
	for i, n := range nodes {
		clients[i] = redis.NewClient(&redis.Options{Addr: n.Addr()})
		defer clients[i].Close()
		var err error
		if ids[i], err = clients[i].Do(background, "cluster", "myid").Text(); err != nil {
			return err
		}
		shards, err := clients[0].ClusterShards(background).Result()
		if err != nil {
			return err
		}
		for _, shard := range shards {
			for _, r := range shard.Slots {
				if shard.Nodes[0].ID == ids[i] && r.Start <= int64(slot) && int64(slot) <= r.End {
					from = i
				}
			}
		}
	}
	if from < 0 {
		return fmt.Errorf("nobody has slot %d", slot)
	}
	to := (from + 1 + rand.IntN(len(nodes)-1)) % len(nodes)
	set := func(node int, args ...any) error {
		return clients[node].Do(background, append([]any{"cluster", "setslot", slot}, args...)...).Err()
	}
	if err := errors.Join(set(to, "importing", ids[from]), set(from, "migrating", ids[to])); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(nodes[to].Addr())
	if err != nil {
		return err
	}
	for batch := 0; ; batch++ {
		keys, err := clients[from].ClusterGetKeysInSlot(background, slot, 7).Result()
		if err != nil {
			return err
		}
		if batch < 2 || len(keys) == 0 {
			if err := seen(); err != nil {
				return err
			}
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"migrate", host, port, "", 0, 5000, "keys"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := clients[from].Do(background, args...).Err(); err != nil {
			return err
		}
	}
	for _, node := range []int{to, from, 3 - to - from} {
		if err := set(node, "node", ids[to]); err != nil {
			return err
		}
	}
	return nil
}
