package sqlpeers

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// lib/pq calls a connection bad that ends while it waits for an answer, and database/sql takes that for "not sent". What was carried out is an error all
// the same, and is not carried out again.
func TestLibPQCuts(t *testing.T) {
	server := servers.StartPostgres(t)
	proxy := servers.StartProxy(t, server.Addr())
	direct := open(t, "postgres", servers.DSN(server.Addr()))
	require.NoError(t, sqlstore.Migrate(t.Context(), direct, sqlstore.PostgreSQL))
	through, plain := newStore(t, open(t, "postgres", servers.DSN(proxy.Addr())), sqlstore.PostgreSQL), newStore(t, direct, sqlstore.PostgreSQL)
	spend := func(s *sqlstore.Store, entry string) error {
		out, err := s.Apply(t.Context(), time.Unix(2e9, 0), []store.Op{
			store.Spend("token", "a.t", 1, &store.Record{Left: 1000}), store.Put(store.Record{Kind: "ledger", ID: entry, Version: store.AnyVersion}),
		})
		if err == nil && !out.Applied() {
			err = fmt.Errorf("%+v", out)
		}
		return err
	}
	done := 0
	for at := 0; ; at++ {
		entry := fmt.Sprintf("a.entry%03d", at)
		proxy.Once(entry, servers.CutAnswer(at))
		err := spend(through, entry)
		done++
		got, failed := plain.Get(t.Context(), "ledger", entry)
		require.NoError(t, failed)
		require.Len(t, got, 1, "the server had answered")
		require.Equal(t, uint64(1), got[0].Version, "cut after %d bytes, it was carried out twice", at)
		if at >= proxy.Harmed().Answer {
			require.NoError(t, err)
			break
		}
		require.ErrorContains(t, err, "sqlstore: PostgreSQL: apply 2 operations", "cut after %d bytes", at)
	}
	require.Greater(t, done, 20)
	got, err := plain.Get(t.Context(), "token", "a.t")
	require.NoError(t, err)
	require.Equal(t, int64(1000-done), got[0].Left)
}
