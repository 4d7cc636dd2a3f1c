package grant_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// What a server keeps beside the grants lies with them, and RevokeAccount and RevokeSignIns reach it.
func TestSignInRecords(t *testing.T) {
	w := newWorld(t, nil)
	aggregate, kind, ids := w.SignInRecords("zhang-san", "bookbot")
	versions := func() [2]uint64 {
		var v [2]uint64
		for i, id := range ids {
			require.Equal(t, aggregate, store.Aggregate(id))
			found, err := w.store.Get(t.Context(), kind, id)
			require.NoError(t, err)
			if len(found) > 0 {
				v[i] = found[0].Version
			}
		}
		return v
	}
	require.Equal(t, [2]uint64{0, 0}, versions())
	require.NoError(t, w.RevokeSignIns(t.Context(), "zhang-san", "bookbot"))
	require.NoError(t, w.RevokeSignIns(t.Context(), "zhang-san", "other"))
	require.NoError(t, w.RevokeSignIns(t.Context(), "li-si", "bookbot"))
	require.Equal(t, [2]uint64{0, 1}, versions())
	require.NoError(t, w.RevokeAccount(t.Context(), "zhang-san"))
	require.Equal(t, [2]uint64{1, 1}, versions())
	entries, err := w.Ledger(t.Context(), "zhang-san", "", 10)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	require.NotContains(t, ids[1], "zhang")
	for _, bad := range [][2]string{{"", "bookbot"}, {"zhang-san", ""}, {"zhang-san", strings.Repeat("a", 65)}} {
		require.ErrorIs(t, w.RevokeSignIns(t.Context(), bad[0], bad[1]), grant.ErrInvalid)
	}

	given := w.clock.now()
	require.NoError(t, w.Registered(t.Context(), "bookbot", given))
	require.ErrorIs(t, w.Registered(t.Context(), "nobody", given), grant.ErrRevoked)
}
