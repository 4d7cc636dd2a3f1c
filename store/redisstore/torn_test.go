package redisstore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

// Of a write that was cut off in Redis's file nothing is there, neither at once nor after another restart, when the file was mended as the package comment says.
func TestTornWrite(t *testing.T) {
	server := start(t, "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "no")
	s := open(t, server.client(), fresh())
	use := func(entry string) []store.Op {
		return []store.Op{store.Spend("token", "a.t", 1, &store.Record{Left: 9}), store.Put(store.Record{Kind: "ledger", ID: "a." + entry})}
	}
	apply := func(entry string) store.Outcome {
		t.Helper()
		out, err := s.Apply(t.Context(), now, use(entry))
		require.NoError(t, err)
		return out
	}
	require.Equal(t, store.Outcome{Left: 8}, apply("1"))
	require.Equal(t, store.Outcome{Left: 7}, apply("2"))
	server.Kill()
	files, err := filepath.Glob(filepath.Join(server.Dir(), "appendonly*", "*.incr.aof"))
	require.NoError(t, err)
	if len(files) == 0 {
		files = []string{filepath.Join(server.Dir(), "appendonly.aof")} // before Redis 7
	}
	text, err := os.ReadFile(files[len(files)-1])
	require.NoError(t, err)
	torn := bytes.LastIndex(text, []byte("EXEC"))
	require.Greater(t, torn, bytes.LastIndex(text, []byte("MULTI")), "a write is one transaction")
	require.NoError(t, os.Truncate(files[len(files)-1], int64(torn)+2))
	for round, left := range []int64{7, 6, 5} {
		server.Start()
		require.Equal(t, store.Outcome{Left: left}, apply(string(rune('3'+round))))
		got, err := s.List(t.Context(), store.Query{Kind: "ledger"})
		require.NoError(t, err)
		require.Len(t, got, 2+round)
		server.Kill()
	}
}
