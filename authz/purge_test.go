package authz_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A purgeSpy sees what is purged, and lets it take a while.
type purgeSpy struct {
	store.Store
	took  time.Duration
	mu    sync.Mutex
	steps []purged
	now   int // under way
	most  int // at once
}

type purged struct {
	node    int
	at, end time.Time
	removed int
}

func (s *purgeSpy) purge(ctx context.Context, node int, kind string, before time.Time, n int) (int, error) {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	at := time.Now()
	removed, err := s.Store.Purge(ctx, kind, before, n)
	if removed > 0 {
		<-time.After(s.took)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	s.steps = append(s.steps, purged{node, at, time.Now(), removed})
	return removed, err
}

func (s *purgeSpy) seen() []purged {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]purged(nil), s.steps...)
}

// A purgeNode is the spy as one server sees it.
type purgeNode struct {
	*purgeSpy
	id   int
	hang atomic.Bool // as a process that is stopped
}

func (n *purgeNode) Purge(ctx context.Context, kind string, before time.Time, max int) (int, error) {
	if n.hang.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return n.purge(ctx, n.id, kind, before, max)
}

func (n *purgeNode) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if n.hang.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return n.purgeSpy.Claim(ctx, q, until)
}

func purging(t *testing.T, nodes int, log *lockedBuffer) ([]*authz.Server, []*purgeNode, *purgeSpy) {
	spy := &purgeSpy{Store: store.NewMemory()}
	var servers []*authz.Server
	var stores []*purgeNode
	for id := range nodes {
		n := &purgeNode{purgeSpy: spy, id: id}
		one, _ := bubble(t, 1, func(c *authz.Config) {
			c.Store = n
			c.Log = slog.New(slog.NewTextHandler(log, nil))
		})
		servers, stores = append(servers, one[0]), append(stores, n)
	}
	return servers, stores, spy
}

// expired writes records whose time was over long ago.
func expired(t *testing.T, st store.Store, kind string, n int) {
	t.Helper()
	for i := 0; i < n; {
		var ops []store.Op
		for ; i < n && len(ops) < store.MaxBatch; i++ {
			ops = append(ops, store.Put(store.Record{Kind: kind, ID: fmt.Sprintf("a%d.%d", i/store.MaxBatch, i), NotAfter: time.Now().Add(-1000 * 24 * time.Hour)}))
		}
		out, err := st.Apply(t.Context(), time.Now(), ops)
		require.NoError(t, err)
		require.True(t, out.Applied())
	}
}

func remain(t *testing.T, st store.Store, kind string) int {
	t.Helper()
	got, err := st.List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
	require.NoError(t, err)
	return len(got)
}

// However many servers share a store, one of them purges at a time, and as often as one alone would.
func TestPurgeByOneOfMany(t *testing.T) {
	calls := map[int]int{}
	for _, nodes := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			var log lockedBuffer
			servers, _, spy := purging(t, nodes, &log)
			var stops []func()
			for _, az := range servers {
				stops = append(stops, background(t, func(ctx context.Context) { _ = az.Run(ctx) }))
				time.Sleep(7 * time.Second) // they are not started at once
			}
			time.Sleep(time.Hour)
			for _, stop := range stops {
				stop()
			}
			calls[nodes] = len(spy.seen())
			require.Equal(t, 1, spy.most, "at once")
			require.Empty(t, log.String())
		})
	}
	require.Greater(t, calls[1], 60*10, "each minute, each kind")
	require.LessOrEqual(t, calls[3], calls[1]*10/9+11, "rounds may come a tenth sooner")
}

// A server that dies or hangs in the middle of a round is replaced when its lease is over, and the rest goes on.
func TestPurgeIsTakenOver(t *testing.T) {
	for name, end := range map[string]func(stop func(), n *purgeNode){
		"dies":  func(stop func(), _ *purgeNode) { stop() },
		"hangs": func(_ func(), n *purgeNode) { n.hang.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer
				servers, stores, spy := purging(t, 2, &log)
				expired(t, spy, "ledger", 5000)
				spy.took = time.Second
				stop := background(t, func(ctx context.Context) { _ = servers[0].Run(ctx) })
				time.Sleep(5 * time.Second)
				other := background(t, func(ctx context.Context) { _ = servers[1].Run(ctx) })
				time.Sleep(58 * time.Second) // three steps of ten
				end(stop, stores[0])
				ended := time.Now()
				before := len(spy.seen())
				require.Less(t, before, 50)
				time.Sleep(2 * time.Minute)
				if name == "hangs" {
					require.Contains(t, log.String(), "purge")
					stop()
				}
				other()
				require.Zero(t, remain(t, spy, "ledger"))
				require.Equal(t, 1, spy.most)
				removed := 0
				for i, s := range spy.seen() {
					removed += s.removed
					if i > before && s.removed > 0 {
						require.Equal(t, 1, s.node)
						require.LessOrEqual(t, s.at.Sub(ended), 100*time.Second, "a lease and a tick, and the work")
					}
				}
				require.Equal(t, 5000, removed)
			})
		})
	}
}

// A server whose clock runs far ahead keeps none of the others from purging for as long as that is.
func TestPurgeDespiteAClockAhead(t *testing.T) {
	for _, ahead := range []time.Duration{11 * time.Minute, 30 * 24 * time.Hour, 100 * 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var log lockedBuffer
			servers, _, spy := purging(t, 2, &log)
			expired(t, spy, "ledger", 1200)
			_, err := spy.Apply(t.Context(), time.Now(), []store.Op{store.Put(store.Record{Kind: "purge", ID: "purge", Due: time.Now().Add(ahead)})})
			require.NoError(t, err)
			for _, az := range servers {
				defer background(t, func(ctx context.Context) { _ = az.Run(ctx) })()
			}
			time.Sleep(61 * time.Second)
			require.Zero(t, remain(t, spy, "ledger"))
			require.Equal(t, 1, spy.most, "one at a time")
			require.Empty(t, log.String())
		})
	}
}

// A backlog drains in small steps with pauses, however long it takes, while tokens are used; and in one hand.
func TestPurgeOfABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const backlog = 40_000
		var log lockedBuffer
		servers, _, spy := purging(t, 2, &log)
		expired(t, spy, "ledger", backlog/2)
		expired(t, spy, "token", backlog/4)
		expired(t, spy, "access", backlog/4)
		spy.took = 500 * time.Millisecond // 80 steps: longer than a lease
		for _, az := range servers {
			defer background(t, func(ctx context.Context) { _ = az.Run(ctx) })()
		}
		time.Sleep(time.Minute + time.Second)
		require.NotEmpty(t, spy.seen(), "in the middle of it")
		issued, err := servers[0].Emit(t.Context(), bubbleMention("m1"))
		require.NoError(t, err)
		_, token, err := servers[1].Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
		require.NoError(t, err)
		began := time.Now()
		_, err = servers[0].Use(t.Context(), authz.Call{Token: token.Reveal(), Want: mayWrite})
		require.NoError(t, err)
		require.Zero(t, time.Since(began))
		time.Sleep(3 * time.Minute)
		total := 0
		var last purged
		for _, s := range spy.seen() {
			require.LessOrEqual(t, s.removed, 500)
			if s.removed == 500 && last.removed == 500 {
				require.GreaterOrEqual(t, s.at.Sub(last.end), 25*time.Millisecond, "a pause")
			}
			total += s.removed
			last = s
		}
		require.GreaterOrEqual(t, total, backlog)
		require.LessOrEqual(t, total, backlog+4, "and what of the grant is over")
		for _, kind := range []string{"ledger", "token", "access"} {
			require.LessOrEqual(t, remain(t, spy, kind), 3, "%s: those of the grant", kind)
		}
		require.Equal(t, 1, spy.most)
		require.Empty(t, log.String())
	})
}

var mayWrite = scope.MustParse("group:42/message.write")
