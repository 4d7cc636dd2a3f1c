package nodes

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/store"
)

// A backlog on disk drains in small steps, by one of two servers, while tokens are used. Time is not real, the file is.
func TestPurgeOnSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	synctest.Test(t, func(t *testing.T) {
		h := onSQLite(t, path)
		const backlog = 6000
		old := time.Now().Add(-1000 * 24 * time.Hour)
		for i := 0; i < backlog; {
			var ops []store.Op
			for range 30 {
				ops = append(ops, store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a%d.%d", i/30, i), Owner: "li-si", NotAfter: old, Data: make([]byte, 100)}))
				i++
			}
			out, err := h.store.Apply(t.Context(), old, ops)
			require.NoError(t, err)
			require.True(t, out.Applied())
		}
		var said log
		var counts []*counted
		var all []*authz.Server
		for range 2 {
			c := &counted{Store: h.store}
			counts = append(counts, c)
			az := node(t, handle{store: c}, nil, func(c *authz.Config) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
			all = append(all, az)
			run(t, az)
		}
		var uses sync.WaitGroup
		over, stop := context.WithCancel(t.Context())
		used := 0
		uses.Go(func() {
			for over.Err() == nil {
				issued, err := all[used%2].Emit(t.Context(), mention())
				if err != nil {
					t.Error(err)
					return
				}
				_, token, err := all[0].Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := all[1].Use(t.Context(), authz.Call{Token: token.Reveal(), Want: write}); err != nil {
					t.Error(err)
					return
				}
				used++
				select {
				case <-over.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
		time.Sleep(63 * time.Second)
		stop()
		uses.Wait()
		left, err := h.store.List(t.Context(), store.Query{Kind: "ledger", Owner: "li-si", Limit: store.MaxPage})
		require.NoError(t, err)
		require.Empty(t, left)
		steps := counts[0].purges.Load() + counts[1].purges.Load()
		require.Zero(t, min(counts[0].purges.Load(), counts[1].purges.Load()), "one of them")
		require.GreaterOrEqual(t, steps, int64(backlog/500))
		require.LessOrEqual(t, max(counts[0].largest.Load(), counts[1].largest.Load()), int64(500))
		require.Greater(t, used, 1000)
		require.Empty(t, said.String())
	})
}
