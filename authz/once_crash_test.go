package authz_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

func TestMain(m *testing.M) {
	if where := os.Getenv("BEHEST_ONCE_CRASH"); where != "" {
		serveUntilKilled(where)
		return
	}
	os.Exit(m.Run())
}

// serveUntilKilled is another process: a server whose handler spends and has its effect in one transaction, and which stops where
// the request says, to be killed there.
func serveUntilKilled(where string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	driver, name, _ := strings.Cut(where, " ")
	d := sqlstore.PostgreSQL
	if driver == "sqlite" {
		d = sqlstore.SQLite
	}
	db, err := sql.Open(driver, name)
	check(err)
	db.SetMaxOpenConns(4)
	st, err := sqlstore.New(db, d)
	check(err)
	az, err := authz.New(crashConfig(st))
	check(err)
	var out sync.Mutex
	say := func(what string) {
		out.Lock()
		defer out.Unlock()
		_, err := fmt.Println(what)
		check(err)
	}
	web := httptest.NewServer(az.Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := func(point string) {
			if r.Header.Get("X-Stop") == point {
				say("stopped")
				select {}
			}
		}
		effect, err := io.ReadAll(r.Body)
		check(err)
		delegation, _ := authz.FromContext(r.Context())
		err = inTx(r.Context(), db, func(tx *sql.Tx) error {
			if err := delegation.Spend(r.Context(), sqlstore.Tx(tx, d)); err != nil {
				return err
			}
			at("before the effect")
			if _, err := tx.ExecContext(r.Context(), "INSERT INTO effects (id) VALUES ('"+string(effect)+"')"); err != nil {
				return err
			}
			at("before the commit")
			return nil
		})
		if err != nil {
			authz.Refuse(w, r, err)
			return
		}
		at("before the answer")
		w.WriteHeader(http.StatusCreated)
	})))
	say(web.URL)
	select {}
}

// crashConfig is that of the servers that bubble makes, as far as another process needs it.
func crashConfig(st store.Store) authz.Config {
	return authz.Config{
		Issuer: "https://social.example", Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)),
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps:   []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"message.write"}}},
	}
}

// A victim is a server in a process of its own.
type victim struct {
	cmd   *exec.Cmd
	lines *bufio.Reader
	url   string
}

func startVictim(t *testing.T, where string) *victim {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	v := &victim{cmd: exec.CommandContext(t.Context(), self)}
	v.cmd.Env = append(os.Environ(), "BEHEST_ONCE_CRASH="+where)
	out, err := v.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, v.cmd.Start())
	v.lines = bufio.NewReader(out)
	v.url = v.line(t)
	require.True(t, strings.HasPrefix(v.url, "http://"), v.url)
	return v
}

func (v *victim) line(t *testing.T) string {
	t.Helper()
	line, err := v.lines.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSuffix(line, "\n")
}

// kill is SIGKILL.
func (v *victim) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, v.cmd.Process.Kill())
	require.Error(t, v.cmd.Wait())
}

// post returns the status, the reason and whether it was replayed; an error means that nobody knows.
func (v *victim) post(client *http.Client, token, key, effect, stop string) (string, error) {
	r, err := http.NewRequest("POST", v.url, strings.NewReader(effect))
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("X-Stop", stop)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	res, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	_, reason, _ := strings.Cut(string(body), `"error_reason":"`)
	reason, _, _ = strings.Cut(reason, `"`)
	return strings.TrimSpace(fmt.Sprint(res.StatusCode, " ", reason, res.Header.Get("Idempotency-Replayed"))), nil
}

func TestCrashSpendInHandlerSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	crashes(t, "sqlite "+sqliteName(path), sharedSQL(t, sqlstore.SQLite, openSQLite(t, path), openSQLite(t, path)))
}

func TestCrashSpendInHandlerPostgreSQL(t *testing.T) {
	dsn := postgresSchema(t)
	crashes(t, "pgx "+dsn, sharedSQL(t, sqlstore.PostgreSQL, openPostgres(t, dsn), openPostgres(t, dsn)))
}

const crashUses = 100_000

// crashes kills the server between the use and its effect, between the effect and the commit, between the commit and the
// answer, and at random under load: there are always as many effects as uses spent.
func crashes(t *testing.T, where string, s *shared) {
	_, token := s.servers(t, crashUses)
	db := s.dbs[0]
	// Both of one moment, also while the database still carries out what a killed client has sent.
	balance := func() (effects int) {
		t.Helper()
		var left int
		row := db.QueryRow("SELECT (SELECT count(*) FROM effects), (SELECT left_uses FROM behest_records WHERE kind = 'token')")
		require.NoError(t, row.Scan(&effects, &left))
		require.Equal(t, effects, crashUses-left, "effects and uses spent")
		return effects
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // what is not answered is not sent again by itself
	for _, row := range []struct {
		stop, key, retry string
		effects          int
	}{
		{"before the effect", "", "201", 1},
		{"before the commit", "", "201", 1},
		{"before the answer", "", "201", 2}, // without a key, nobody can know
		{"before the effect", "k1", "201", 1},
		{"before the commit", "k2", "201", 1},
		{"before the answer", "k3", "409 key_in_flight", 1},
	} {
		before := balance()
		v := startVictim(t, where)
		failed := make(chan error, 1)
		effect := fmt.Sprint(row.stop, row.key)
		go func() { _, err := v.post(client, token, row.key, effect, row.stop); failed <- err }()
		require.Equal(t, "stopped", v.line(t))
		v.kill(t)
		require.Error(t, <-failed)
		v = startVictim(t, where)
		if row.key == "" {
			effect += " again"
		}
		got, err := v.post(client, token, row.key, effect, "")
		require.NoError(t, err)
		require.Equal(t, row.retry, got, row.stop)
		require.Equal(t, before+row.effects, balance(), row.stop)
		if got == "201" && row.key != "" {
			got, err = v.post(client, token, row.key, effect, "")
			require.NoError(t, err)
			require.Equal(t, "201 true", got)
			require.Equal(t, before+row.effects, balance())
		}
		v.kill(t)
	}

	rounds := 12
	if testing.Short() {
		rounds = 2
	}
	acknowledged := map[string]bool{} // by effect
	var mu sync.Mutex
	unknown := 0
	for round := range rounds {
		v := startVictim(t, where)
		var answers atomic.Int64
		after := int64(1 + rand.IntN(25))
		enough := make(chan struct{})
		var clients sync.WaitGroup
		for c := range 4 {
			clients.Go(func() {
				for n := 0; ; n++ {
					effect, key := fmt.Sprintf("%d-%d-%d", round, c, n), ""
					if c%2 == 0 {
						key = effect
					}
					got, err := v.post(client, token, key, effect, "")
					mu.Lock()
					switch {
					case err != nil:
						unknown++
						mu.Unlock()
						return
					case got != "201":
						t.Errorf("%s: %s", effect, got)
					default:
						acknowledged[effect] = true
					}
					mu.Unlock()
					if answers.Add(1) == after {
						close(enough)
					}
				}
			})
		}
		<-enough
		v.kill(t)
		clients.Wait()
		balance()
	}
	done := map[string]bool{}
	for _, effect := range s.effects(t) {
		done[effect] = true
	}
	for effect := range acknowledged {
		require.True(t, done[effect], "%s was acknowledged and is lost", effect)
	}
	t.Logf("%d servers killed, %d effects, %d of them acknowledged, %d requests without an answer", 12+rounds, balance(), len(acknowledged), unknown)

	// What has no answer is asked for again, with its key: each is there once then, or its outcome is known to be lost.
	v := startVictim(t, where)
	defer v.kill(t)
	for round := range rounds {
		for _, c := range []int{0, 2} {
			n := 0
			for acknowledged[fmt.Sprintf("%d-%d-%d", round, c, n)] {
				n++
			}
			effect := fmt.Sprintf("%d-%d-%d", round, c, n)
			before := balance()
			got, err := v.post(client, token, effect, effect, "")
			require.NoError(t, err)
			if done[effect] {
				require.Contains(t, []string{"409 key_in_flight", "201 true"}, got)
				require.Equal(t, before, balance())
			} else {
				require.Equal(t, "201", got)
				require.Equal(t, before+1, balance())
			}
		}
	}
}
