package store_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

func TestMemoryWatch(t *testing.T) {
	ctx, now := context.Background(), time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)
	m := store.NewMemory()
	apply := func(ops ...store.Op) store.Outcome {
		out, err := m.Apply(ctx, now, ops)
		require.NoError(t, err)
		return out
	}
	moved, again, other := m.Watch("config"), m.Watch("config"), m.Watch("a1")
	last := moved()
	has := func() bool {
		before := last
		last = moved()
		require.Equal(t, last, again(), "all who watch see the same")
		return last != before
	}
	for name, tc := range map[string]struct {
		op   store.Op
		want bool
	}{
		"a put in it":         {store.Put(store.Record{Kind: "k", ID: "config.a", Version: store.AnyVersion}), true},
		"the bare aggregate":  {store.Put(store.Record{Kind: "k", ID: "config", Version: store.AnyVersion}), true},
		"one that refuses":    {store.Put(store.Record{Kind: "k", ID: "config.b", Version: 7}), false},
		"another aggregate":   {store.Put(store.Record{Kind: "k", ID: "configuration.a", Version: store.AnyVersion}), false},
		"a delete of nothing": {store.Delete("k", "config.c", store.AnyVersion), true}, // may say so once too often, never too seldom
	} {
		apply(tc.op)
		require.Equal(t, tc.want, has(), name)
	}
	require.Zero(t, other())

	// Whoever reads the record after the number finds at least what made the number.
	found, err := m.Get(ctx, "k", "config.a")
	require.NoError(t, err)
	require.Len(t, found, 1)
	first := found[0].Version
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := moved()
				found, err := m.Get(ctx, "k", "config.a")
				if err != nil || len(found) != 1 || found[0].Version < first+n-last {
					t.Errorf("number %d, found %v, %v", n, found, err)
					return
				}
			}
		})
	}
	for range 1000 {
		apply(store.Put(store.Record{Kind: "k", ID: "config.a", Version: store.AnyVersion}))
	}
	close(stop)
	wg.Wait()
	require.True(t, has())
}
