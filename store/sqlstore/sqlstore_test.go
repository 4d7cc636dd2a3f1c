package sqlstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
	"github.com/behest-go/behest/store/storetest"
)

func TestPostgreSQL(t *testing.T) {
	dsn := postgresDSN(t)
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		one, two := postgresNodes(t, dsn)
		return newStore(t, one, sqlstore.PostgreSQL), newStore(t, two, sqlstore.PostgreSQL)
	})
}

// A database of another collation, in which PostgreSQL would sort and compare otherwise.
func TestPostgreSQLWithICU(t *testing.T) {
	dsn := icuDSN(t)
	var first string
	require.NoError(t, openPostgres(t, dsn, "public").QueryRow("SELECT min(x) FROM (VALUES ('a'), ('B')) v(x)").Scan(&first))
	require.Equal(t, "a", first, "the database does not sort as ICU does")
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		one, two := postgresNodes(t, dsn)
		return newStore(t, one, sqlstore.PostgreSQL), newStore(t, two, sqlstore.PostgreSQL)
	})
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		one, two := sqliteNodes(t)
		return newStore(t, one, sqlstore.SQLite), newStore(t, two, sqlstore.SQLite)
	})
}

// The ledger is kept apart, by the same laws.
func TestSQLiteLedger(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		one, two := sqliteNodes(t)
		return stores.Swap(newStore(t, one, sqlstore.SQLite), "t", "ledger"), stores.Swap(newStore(t, two, sqlstore.SQLite), "t", "ledger")
	})
}
