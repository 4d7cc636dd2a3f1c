package stores_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

// Two nodes are on one store, and two stores are apart.
func TestEach(t *testing.T) {
	names := map[string]bool{}
	apart := func(t *testing.T, s stores.Maker) {
		names[s.Name] = true
		node, other := s.New(t), s.New(t)
		one, two, elsewhere := node(), node(), other()
		require.Equal(t, s.Name == "memory", one == two, "each node has its own handle")
		out, err := one.Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "t", ID: "a.1", Data: []byte(s.Name)})})
		require.NoError(t, err)
		require.True(t, out.Applied())
		got, err := two.Get(t.Context(), "t", "a.1")
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, s.Name, string(got[0].Data))
		none, err := elsewhere.Get(t.Context(), "t", "a.1")
		require.NoError(t, err)
		require.Empty(t, none)
	}
	stores.Everywhere(t, apart)
	require.Contains(t, names, "memory")
	require.Contains(t, names, "sqlite")
}

func TestSome(t *testing.T) {
	for _, n := range []int{1, 2, 20, 100} {
		require.Equal(t, n, stores.Memory(t).Some(n))
		require.Equal(t, max(1, n/10), stores.SQLite(t).Some(n))
	}
}
