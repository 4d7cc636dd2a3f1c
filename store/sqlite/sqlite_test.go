package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
	"github.com/behest-go/behest/store/storetest"
)

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		path := filepath.Join(t.TempDir(), "db")
		return open(t, path), open(t, path)
	})
}

// The ledger is kept apart, by the same laws.
func TestStoreOfTheLedger(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		path := filepath.Join(t.TempDir(), "db")
		return stores.Swap(open(t, path), "t", "ledger"), stores.Swap(open(t, path), "t", "ledger")
	})
}
