package sqlstore_test

import (
	"bufio"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store/sqlstore"
)

// What PostgreSQL itself logs of a use, an issue, a redemption and a revocation: one statement each for what is to be written, and no BEGIN or COMMIT around
// it. Redeeming reads the grant first. The same on a node that has never seen the grant.
func TestStatementsOnTheWire(t *testing.T) {
	server := servers.StartPostgres(t, "log_statement=all", "logging_collector=on", "log_line_prefix=|%a|", "log_rotation_age=0", "log_rotation_size=0", "fsync=off")
	dsn := servers.DSN(server.Addr())
	admin := openPostgres(t, dsn, "public", "admin")
	require.NoError(t, sqlstore.Migrate(t.Context(), admin, sqlstore.PostgreSQL))
	// A node is up, and has seen nothing: it has looked for the configuration, as each does about once a second, whatever else it does.
	node := func(name string) *grant.Engine {
		e, err := newEngine(newStore(t, openPostgres(t, dsn, "public", name), sqlstore.PostgreSQL), nil)
		require.NoError(t, err)
		nothing := mention("m0")
		nothing.Operation = grant.ButtonPress
		issued, err := e.Emit(t.Context(), nothing)
		require.NoError(t, err)
		require.Empty(t, issued)
		return e
	}
	// logged are the statements that the server has got from a node, and how many of them have the form of a use, for which behest_apply has a shorter way.
	// The collector writes behind it: a mark says how far it is.
	marks := 0
	logged := func(name string) (statements []string, uses int) {
		t.Helper()
		marks++
		mark := strings.Repeat("mark ", marks) + "end"
		_, err := admin.Exec("SELECT '" + mark + "'")
		require.NoError(t, err)
		var log string
		require.True(t, servers.Eventually(t.Context(), nil, func() bool {
			require.NoError(t, admin.QueryRow("SELECT pg_read_file(pg_current_logfile())").Scan(&log))
			return strings.Contains(log, "'"+mark+"'")
		}), "the log does not come")
		for lines := bufio.NewScanner(strings.NewReader(log)); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "|"+name+"|DETAIL:  parameters: $1 = '2031-05-06 07:08:09.123456+00', $2 = 't'") {
				uses++
			}
			rest, ok := strings.CutPrefix(lines.Text(), "|"+name+"|LOG:  ")
			if !ok {
				continue
			}
			what, sql, _ := strings.Cut(rest, ": ") // "statement: …" or "execute stmtcache_…: …"
			if sql == "-- ping" {                   // of pgx, about once a second, to a connection that it takes from the pool
				continue
			}
			if what == "statement" || strings.HasPrefix(what, "execute ") {
				statements = append(statements, sql)
			}
		}
		return statements, uses
	}
	apply, get := "SELECT behest_apply(", "SELECT kind, id, version"
	settled := node("settled") // has had a connection, but no grant of this account
	_, err := settled.Grants(t.Context(), "li-si", "", true)
	require.NoError(t, err)
	aside := node("aside")
	more, err := aside.Emit(t.Context(), mention("m2"))
	require.NoError(t, err)
	_, unwanted, err := aside.Redeem(t.Context(), "bookbot", more[0].Code)
	require.NoError(t, err)
	var issued []grant.Grant
	var token, other string
	for _, c := range []struct {
		name string
		want []string
		call func(e *grant.Engine) error
	}{
		{"issue", []string{apply, apply}, func(e *grant.Engine) (err error) { issued, err = e.Emit(t.Context(), mention("m1")); return err }}, // two triggers, two grants
		{"redeem", []string{get, apply}, func(e *grant.Engine) error {
			_, secret, err := e.Redeem(t.Context(), "bookbot", issued[0].Code)
			token = secret.Reveal()
			return err
		}},
		{"redeem-other", []string{get, apply}, func(e *grant.Engine) error {
			_, secret, err := e.Redeem(t.Context(), "bookbot", issued[1].Code)
			other = secret.Reveal()
			return err
		}},
		{"use", []string{apply}, func(e *grant.Engine) error { _, err := e.Use(t.Context(), token, write); return err }},
		{"use-again", []string{apply}, func(e *grant.Engine) error { _, err := e.Use(t.Context(), token, write); return err }},
		{"forged", nil, func(e *grant.Engine) error {
			_, err := e.Use(t.Context(), token[:len(token)-4]+"AAAA", write)
			require.ErrorIs(t, err, grant.ErrUnknown)
			return nil
		}},
		{"revoke", []string{apply}, func(e *grant.Engine) error { return e.Revoke(t.Context(), "zhang-san", issued[1].ID) }},
		{"use-revoked", []string{apply}, func(e *grant.Engine) error {
			_, err := e.Use(t.Context(), other, write)
			require.ErrorIs(t, err, grant.ErrRevoked)
			return nil
		}},
		{"revoke-again", []string{apply}, func(e *grant.Engine) error { return e.Revoke(t.Context(), "zhang-san", issued[1].ID) }},
		{"revoke-nothing", []string{apply}, func(e *grant.Engine) error {
			require.ErrorIs(t, e.Revoke(t.Context(), "li-si", issued[1].ID), grant.ErrUnknown)
			return nil
		}},
		{"revoke-token", []string{apply}, func(e *grant.Engine) error { return e.RevokeToken(t.Context(), "bookbot", unwanted) }},
		{"revoke-code", []string{apply}, func(e *grant.Engine) error { return e.RevokeToken(t.Context(), "bookbot", more[1].Code) }},
		{"revoke-foreign", nil, func(e *grant.Engine) error {
			require.ErrorIs(t, e.RevokeToken(t.Context(), "weather", more[1].Code), grant.ErrUnknown)
			return nil
		}},
		{"use-beside", []string{apply}, func(e *grant.Engine) error { _, err := e.Use(t.Context(), token, write); return err }},
		{"revoke-app", []string{apply}, func(e *grant.Engine) error { return e.RevokeApp(t.Context(), "zhang-san", "bookbot", group) }},
		{"revoke-account", []string{apply}, func(e *grant.Engine) error { return e.RevokeAccount(t.Context(), "zhang-san") }},
		{"use-late", []string{apply}, func(e *grant.Engine) error {
			_, err := e.Use(t.Context(), token, write)
			require.ErrorIs(t, err, grant.ErrRevoked)
			return nil
		}},
	} {
		e := node(c.name) // each on one that does it for the first time
		before, _ := logged(c.name)
		require.NoError(t, c.call(e), c.name)
		got, uses := logged(c.name)
		got = got[len(before):]
		require.Equal(t, strings.HasPrefix(c.name, "use"), uses == 1, "the way of uses is for all uses: %s", c.name)
		require.Len(t, got, len(c.want), "%s: %q", c.name, got)
		for i, want := range c.want {
			require.True(t, strings.HasPrefix(got[i], want), "%s: %q", c.name, got[i])
		}
	}
	// And on one that has been there for long.
	before, _ := logged("settled")
	_, err = settled.Use(t.Context(), token, write)
	require.ErrorIs(t, err, grant.ErrRevoked)
	after, _ := logged("settled")
	require.Len(t, after, len(before)+1)
}
