package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
	"github.com/behest-go/behest/store/sqlstore"
)

// TestMain is groupchat itself for the processes that these tests start.
func TestMain(m *testing.M) {
	if os.Getenv("GROUPCHAT_PROCESS") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const defaultDSN = "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"

// lacking skips a test by name, but not where the machine promises to have what is missing.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

var schemas atomic.Int64

// postgres is the DSN of a schema of the test's own.
func postgres(t *testing.T) string {
	t.Helper()
	dsn := os.Getenv("BEHEST_POSTGRES")
	if dsn == "" {
		dsn = defaultDSN
	}
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := db.PingContext(ctx); err != nil {
		lacking(t, "no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
	}
	name := fmt.Sprintf("groupchat_test_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), schemas.Add(1))
	_, err = db.Exec("CREATE SCHEMA " + name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := db.Exec("SET client_min_messages = error; DROP SCHEMA " + name + " CASCADE")
		require.NoError(t, err)
	})
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" { // keywords
		return dsn + " search_path=" + name
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// redisServer is the DSN of a Redis of the test's own.
func redisServer(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		lacking(t, "redis-server is not installed")
	}
	for range 10 { // somebody else may take a free port before Redis does
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port, dir := l.Addr().(*net.TCPAddr).Port, t.TempDir()
		require.NoError(t, l.Close())
		cmd := exec.Command(program, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--appendonly", "yes", "--appendfsync", "always")
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
		dsn := fmt.Sprintf("redis://127.0.0.1:%d/0", port)
		o, err := redis.ParseURL(dsn)
		require.NoError(t, err)
		client := redis.NewClient(o)
		defer client.Close()
		if waitFor(t, "Redis", func() (bool, bool) {
			select {
			case <-ended:
				return false, true
			default:
			}
			got, err := client.ConfigGet(t.Context(), "dir").Result()
			return true, err == nil && got["dir"] == dir
		}) {
			return dsn
		}
	}
	t.Fatal("redis-server does not start")
	return ""
}

// everyStore runs a test on each store, each of them empty.
func everyStore(t *testing.T, f func(t *testing.T, o options)) {
	t.Run("memory", func(t *testing.T) { f(t, options{store: "memory"}) })
	t.Run("sqlite", func(t *testing.T) { f(t, options{store: "sqlite", data: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) { f(t, options{store: "postgres", dsn: postgres(t)}) })
	t.Run("redis", func(t *testing.T) { f(t, options{store: "redis", dsn: redisServer(t)}) })
}

// A process is a groupchat that can be killed.
type process struct {
	*testSite
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr *bytes.Buffer
}

func child(args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "GROUPCHAT_PROCESS=1")
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	return cmd, stderr
}

// spawn runs groupchat as a process of its own until the test ends.
func spawn(t *testing.T, args ...string) *process {
	t.Helper()
	cmd, stderr := child(append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{testSite: &testSite{t: t}, cmd: cmd, stdout: bufio.NewReader(out), stderr: stderr}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("groupchat ended before it was ready: %s", stderr)
	}
	p.base = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	return p
}

func (p *process) kill() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Kill())
	require.Error(p.t, p.cmd.Wait())
}

// interrupt is Ctrl-C. It returns what was left to read on stdout.
func (p *process) interrupt() string {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(os.Interrupt))
	rest, err := io.ReadAll(p.stdout)
	require.NoError(p.t, err)
	require.NoError(p.t, p.cmd.Wait(), "%s", p.stderr)
	return string(rest)
}

// on is the same person, with the same cookie, at another process.
func (p *person) on(s *testSite) *person { return &person{s, p.http} }

func (b *probe) on(s *testSite) *probe { return &probe{s, b.id, b.secret} }

// hookServer is the server of an app with a webhook. It hangs until it is told to take what comes.
type hookServer struct {
	*httptest.Server
	came, take chan struct{}
	taken      chan polled
}

func hook(t *testing.T) *hookServer {
	h := &hookServer{came: make(chan struct{}, 100), take: make(chan struct{}), taken: make(chan polled, 100)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		h.came <- struct{}{}
		select {
		case <-h.take:
		case <-r.Context().Done():
			return
		}
		var push struct{ Data polled }
		if err != nil || json.Unmarshal(body, &push) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		h.taken <- push.Data
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(h.Close)
	return h
}

// Whatever way it ended, it begins where it was.
func TestRestart(t *testing.T) {
	for name, end := range map[string]func(*process){
		"kill -9": (*process).kill,
		"Ctrl-C":  func(p *process) { p.interrupt() },
	} {
		t.Run(name, func(t *testing.T) {
			h := hook(t)
			file := appsFile(t, `{"apps": [{"id": "probe", "secret": "s3cr:t +%&-", "actions": ["message.write"]},
				{"id": "bookbot", "name": "BookBot", "secret": "b-secret", "actions": ["message.write"], "webhook": "`+h.URL+`/hook"},
				{"id": "rs", "secret": "rs-secret", "introspect": true}],
				"triggers": [{"id": "p", "app": "probe", "on": "mention", "in": "group:*", "allow": ["message.write"], "for": "10m", "uses": 3, "deliver": "poll"},
				{"id": "b", "app": "bookbot", "on": "mention", "in": "group:*", "allow": ["message.write"], "for": "2m", "uses": 1}]}`)
			dir := filepath.Join(t.TempDir(), "data") // made by groupchat
			before := spawn(t, "-data", dir, "-apps", file)
			zhang, li, probe := before.login("zhang-san"), before.login("li-si"), before.probe()
			first := zhang.say("42", "", "@probe which book?")
			tok := probe.one()
			require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"one of three"}`).status)
			require.Equal(t, 201, li.post("/groups/42/reactions", map[string]string{"message": first.ID, "emoji": "♥"}).status)
			require.Equal(t, 200, li.post("/groups/42/leave", struct{}{}).status)
			zhang.say("42", "winter", "in a new thread")
			asked := zhang.say("42", "", "@bookbot a storm")
			<-h.came // and hangs
			list := zhang.list("42")
			end(before)

			key, err := os.Stat(filepath.Join(dir, "key"))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), key.Mode().Perm())
			text, err := os.ReadFile(filepath.Join(dir, "key"))
			require.NoError(t, err)
			require.NotContains(t, before.stderr.String(), strings.TrimSpace(string(text)))

			after := launch(t, options{store: "sqlite", data: dir, apps: file})
			zhang, li, probe = zhang.on(after), li.on(after), probe.on(after)
			require.Equal(t, list, zhang.list("42"), "signed in, and all is there")
			require.Equal(t, 403, li.get("/groups/42/messages").status, "who left has left")

			// The delivery.
			close(h.take)
			after.skew.Store(int64(31 * time.Second)) // who was killed had it leased
			got := <-h.taken
			require.Equal(t, asked.ID, got.Event.ID)
			bookbot := after.client("bookbot", "b-secret")
			answer := bookbot.redeem(got.Code)
			require.Equal(t, 201, bookbot.api(answer, "POST", "/groups/42/messages", `{"text":"Typhoon, by Joseph Conrad."}`).status)
			bookbot.refused(bookbot.api(answer, "POST", "/groups/42/messages", `{"text":"Typhoon, by Joseph Conrad."}`), 401, "used_up")
			waitFor(t, "word that it was delivered", func() (bool, bool) {
				for _, s := range zhang.grants()[0].Steps {
					if s.What == "delivered" {
						return true, true
					}
				}
				return false, false
			})
			answers, ids := 0, map[string]bool{}
			for _, m := range zhang.list("42") {
				if m.Via == "bookbot" {
					answers++
					require.Equal(t, "zhang-san", m.Account)
				}
				require.False(t, ids[m.ID], "%s is there twice", m.ID)
				ids[m.ID] = true
			}
			require.Equal(t, 1, answers)
			require.Empty(t, h.taken, "delivered once")
			page := request(t, "GET", after.base+"/groups/42", "", "")
			page.Header.Set("Accept", "text/html")
			require.Equal(t, 1, strings.Count(string(do(t, zhang.http, page).body), "via BookBot</span>"))

			// The uses that are left, and their end.
			require.EqualValues(t, 2, after.client("rs", "rs-secret").call("POST", "/oauth2/introspect", url.Values{"token": {tok.AccessToken}}.Encode()).json(t)["uses_left"])
			require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"two of three"}`).status)
			require.Equal(t, 200, zhang.post("/grants/"+tok.GrantID+"/revoke", struct{}{}).status)
			probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"three of three"}`), 401, "revoked")
			// What is said now is a cause of its own.
			zhang.say("42", "", "@probe another?")
			require.Equal(t, 3, probe.one().Uses)
		})
	}
}

// The bots begin anew with the chat. A link in an old message still leads to TeaTime.
func TestRestartOfTheBots(t *testing.T) {
	o := options{store: "sqlite", data: t.TempDir(), seed: true, pace: time.Millisecond}
	before := launch(t, o)
	zhang := before.login("zhang-san")
	zhang.say("42", "", "/tea 17:00")
	m := zhang.waitForMessage("42", "kettle")
	seeded := len(zhang.list("42"))
	require.NoError(t, before.stop())

	zhang = zhang.on(launch(t, o))
	require.Len(t, zhang.list("42"), seeded, "the past is there once")
	a := zhang.post("/groups/42/messages/"+m.ID+"/open", map[string]string{"link": m.Card.Actions[0].Link})
	require.Equal(t, 303, a.status)
	a = do(t, &http.Client{}, request(t, "GET", a.header.Get("Location"), "", ""))
	require.Contains(t, string(a.body), "Noted")
	zhang.waitForMessage("42", "I am coming to tea.")
	// Without a grant there is somebody at home, too.
	require.Equal(t, 200, zhang.post("/groups/42/mute", map[string]any{"user": "zhang-san", "muted": true}).status)
	require.Equal(t, 200, zhang.post("/groups/42/leave", struct{}{}).status)
	require.Equal(t, 200, zhang.post("/groups/42/join", struct{}{}).status)
	a = zhang.post("/groups/42/messages/"+m.ID+"/open", map[string]string{"link": m.Card.Actions[1].Link})
	require.True(t, strings.HasPrefix(a.header.Get("Location"), "http://localhost:"), a.header.Get("Location"))
}

// Two processes on one database act as one.
func TestTwoProcesses(t *testing.T) {
	for name, database := range map[string]func(*testing.T) []string{
		"postgres": func(t *testing.T) []string { return []string{"-store", "postgres", "-dsn", postgres(t)} },
		"postgres with a key of one's own": func(t *testing.T) []string {
			return []string{"-store", "postgres", "-dsn", postgres(t), "-key", filepath.Join(t.TempDir(), "key")}
		},
		"redis":  func(t *testing.T) []string { return []string{"-store", "redis", "-dsn", redisServer(t)} },
		"sqlite": func(t *testing.T) []string { return []string{"-data", t.TempDir()} },
	} {
		t.Run(name, func(t *testing.T) {
			flags := append(database(t), "-apps", withTriggers(t, `{"app":"probe","on":"mention","in":"group:*","allow":["message.write"],"uses":5,"for":"10m","deliver":"poll"}`))
			a, b := spawn(t, flags...), spawn(t, flags...)
			onA, atA := a.login("zhang-san"), a.probe()
			onB, atB := onA.on(b.testSite), atA.on(b.testSite)
			streamed := onB.events()

			asked := onA.say("42", "t1", "@probe which book?")
			got := streamed("message", func(v map[string]any) bool { return v["id"] == asked.ID })
			require.Contains(t, got["html"], "which book?")
			streamed("story", func(v map[string]any) bool { return v["state"] == "issued" })
			tok := atB.one()
			require.Equal(t, asked.ID, tokenEvent(onA, tok))
			require.Equal(t, 201, atB.api(tok, "POST", "/groups/42/messages", `{"text":"as you asked","thread":"t1"}`).status)
			said := onA.waitForMessage("42", "as you asked")
			require.Equal(t, "probe", said.Via)
			require.Equal(t, onA.list("42"), onB.list("42"))
			require.Equal(t, 4, onA.grants()[0].Left)
			require.Len(t, onA.grants(), 1)

			// Revoked on one, refused on the other at the next use.
			require.Equal(t, 200, onA.post("/grants/"+tok.GrantID+"/revoke", struct{}{}).status)
			atB.refused(atB.api(tok, "POST", "/groups/42/messages", `{"text":"x","thread":"t1"}`), 401, "revoked")
			streamed("story", func(v map[string]any) bool { return v["state"] == "revoked" })

			// 64 at once, on both: five.
			onB.say("42", "", "@probe and now?")
			tok = atA.one()
			var won, lost atomic.Int64
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					at := []*probe{atA, atB}[i%2]
					req, err := http.NewRequest("POST", at.base+"/api/groups/42/messages", strings.NewReader(fmt.Sprintf(`{"text":"number %d"}`, i)))
					if err != nil {
						return
					}
					req.Header.Set("Content-Type", "application/json")
					req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
					resp, err := http.DefaultClient.Do(req)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					body, _ := io.ReadAll(resp.Body)
					switch {
					case resp.StatusCode == 201:
						won.Add(1)
					case resp.StatusCode == 401 && bytes.Contains(body, []byte("used_up")):
						lost.Add(1)
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 5, won.Load())
			require.EqualValues(t, 59, lost.Load())
			posted := 0
			for _, m := range onB.list("42") {
				if strings.HasPrefix(m.Text, "number ") {
					posted++
				}
			}
			require.Equal(t, 5, posted)

			// Rights are those of everywhere.
			onA.say("42", "", "@probe once more")
			tok = atB.one()
			require.Equal(t, 200, onA.post("/groups/42/leave", struct{}{}).status)
			atB.refused(atB.api(tok, "POST", "/groups/42/messages", `{"text":"x"}`), 403, "rights_changed")
			require.Equal(t, 200, onB.post("/groups/42/join", struct{}{}).status)
			require.Equal(t, 201, atA.api(tok, "POST", "/groups/42/messages", `{"text":"x"}`).status)

			// One dies, the other goes on.
			a.kill()
			onB.say("42", "", "still here")
			require.Equal(t, 201, atB.api(tok, "POST", "/groups/42/messages", `{"text":"y"}`).status)
			require.NoError(t, b.cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, b.cmd.Wait())
			require.Equal(t, name == "postgres" || name == "redis", strings.Contains(b.stderr.String(), "key is kept in the database"), "%s", b.stderr)
		})
	}
}

func tokenEvent(p *person, t token) string {
	for _, g := range p.grants() {
		if g.ID == t.GrantID {
			return g.Event
		}
	}
	return ""
}

// Many who speak at once wait for each other, and not for ever: what Permit reads, it reads in the message's own
// transaction, and not over a connection more.
func TestManySpeakAtOnce(t *testing.T) {
	everyStore(t, func(t *testing.T, o options) {
		o.apps = pinned
		s := launch(t, o)
		var wg sync.WaitGroup
		var posted atomic.Int64
		for _, name := range []string{"zhang-san", "li-si", "zhao-liu"} {
			p := s.login(name)
			for i := range 16 {
				wg.Go(func() {
					resp, err := p.http.Post(s.base+"/groups/7/messages", "application/json", strings.NewReader(fmt.Sprintf(`{"text":"@probe %d","thread":"t%d"}`, i, i)))
					if err != nil {
						return
					}
					defer resp.Body.Close()
					if resp.StatusCode == 201 {
						posted.Add(1)
					}
				})
			}
		}
		wg.Wait()
		require.EqualValues(t, 48, posted.Load())
		zhang := s.login("zhang-san")
		ids := map[string]bool{}
		for _, m := range zhang.list("7") {
			ids[m.ID] = true
		}
		require.Len(t, ids, 48)
		require.Len(t, zhang.grants(), maxStories)
	})
}

// What people say waits for what others say, and takes its connections with it. Behest has others: it must be able to ask
// what holds, or nobody's transaction gets on.
func TestTheStoreAnswersWhileManySpeak(t *testing.T) {
	test := func(t *testing.T, o options) {
		m, err := o.open(t.Context(), slog.New(slog.DiscardHandler))
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		require.NoError(t, err)
		in := m.rows.(*sqlRows)
		ctx, cancel := context.WithCancel(t.Context())
		var talk sync.WaitGroup
		defer talk.Wait()
		defer cancel()
		for range in.db.Stats().MaxOpenConnections {
			talk.Go(func() {
				_ = in.together(ctx, func(ctx context.Context, _ store.Store) error {
					<-ctx.Done()
					return ctx.Err()
				})
			})
		}
		waitFor(t, "all talk", func() (bool, bool) {
			now := in.db.Stats()
			return true, now.InUse == now.MaxOpenConnections
		})
		asked, over := context.WithTimeout(t.Context(), 5*time.Second)
		defer over()
		_, err = m.store.Get(asked, "config", "any")
		require.NoError(t, err)
	}
	t.Run("sqlite", func(t *testing.T) { test(t, options{store: "sqlite", data: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) { test(t, options{store: "postgres", dsn: postgres(t)}) })
}

// A message whose grant cannot be written is not written either, where both are in one database.
func TestAMessageAndItsGrantTogether(t *testing.T) {
	dir := t.TempDir()
	s := launch(t, options{store: "sqlite", data: dir, apps: pinned})
	zhang := s.login("zhang-san")
	db, err := sql.Open("sqlite", filepath.Join(dir, "groupchat.db")+"?_pragma=busy_timeout(10000)")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec("CREATE TRIGGER broken BEFORE INSERT ON behest_records WHEN NEW.kind = 'grant' BEGIN SELECT RAISE(ABORT, 'the disk is tired'); END")
	require.NoError(t, err)
	a := zhang.post("/groups/42/messages", map[string]string{"text": "@probe which book?"})
	require.Equal(t, http.StatusServiceUnavailable, a.status, "%s", a.body)
	require.Contains(t, string(a.body), "temporarily_unavailable")
	require.NotContains(t, string(a.body), "disk")
	require.Empty(t, zhang.list("42"))
	zhang.say("42", "", "which gives nothing")
	_, err = db.Exec("DROP TRIGGER broken")
	require.NoError(t, err)
	m := zhang.say("42", "", "@probe which book?")
	require.Equal(t, m.ID, s.probe().poll()[0].Event.ID)
	require.Len(t, zhang.list("42"), 2)
}

// Killed again and again while people speak: what was acknowledged is there, and each message that mentions the app
// has its grant, also those of which nobody heard.
func TestKilledWhilePeopleSpeak(t *testing.T) {
	dir, said := t.TempDir(), map[string]bool{}
	var mu sync.Mutex
	for range 5 {
		p := spawn(t, "-data", dir, "-apps", pinned)
		var wg sync.WaitGroup
		enough := make(chan struct{}, 1000)
		for _, name := range []string{"zhang-san", "li-si", "zhao-liu"} {
			who := p.login(name)
			wg.Go(func() {
				for { // until it is killed
					resp, err := who.http.Post(p.base+"/groups/7/messages", "application/json", strings.NewReader(`{"text":"@probe hello"}`))
					if err != nil {
						return
					}
					var m message
					err = json.NewDecoder(resp.Body).Decode(&m)
					_ = resp.Body.Close()
					if err != nil {
						return
					}
					mu.Lock()
					said[m.ID] = true
					mu.Unlock()
					enough <- struct{}{}
				}
			})
		}
		for range 7 {
			<-enough
		}
		p.kill()
		wg.Wait()
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "groupchat.db"))
	require.NoError(t, err)
	defer db.Close()
	names := func(query string) map[string]bool {
		rows, err := db.Query(query)
		require.NoError(t, err)
		defer rows.Close()
		out := map[string]bool{}
		for rows.Next() {
			var name string
			require.NoError(t, rows.Scan(&name))
			out[name] = true
		}
		require.NoError(t, rows.Err())
		return out
	}
	messages := names("SELECT name FROM groupchat_rows WHERE place = 'messages/7'")
	causes := names("SELECT json_extract(CAST(data AS text), '$.event.id') FROM behest_records WHERE kind = 'grant'")
	require.GreaterOrEqual(t, len(said), 35)
	for id := range said {
		require.True(t, messages[id], "%s was acknowledged", id)
	}
	require.Equal(t, messages, causes)
}

// ended runs groupchat to its end, which must come by itself.
func ended(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd, errs := child(append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	bounded := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	bounded.Env, bounded.Stderr = cmd.Env, errs
	out, err := bounded.Output()
	require.Error(t, err)
	require.NoError(t, ctx.Err())
	return bounded.ProcessState.ExitCode(), string(out), errs.String()
}

// launched is a directory in which groupchat has been.
func launched(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, launch(t, options{store: "sqlite", data: dir}).stop())
	return dir
}

func TestWrongStores(t *testing.T) {
	listed := func(dir string) (out []string) {
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, f := range files {
			out = append(out, f.Name())
		}
		return out
	}
	plain := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(plain, nil, 0o600))
	dead, err := net.Listen("tcp", "127.0.0.1:0") // a port where nobody listens
	require.NoError(t, err)
	nobody := dead.Addr().String()
	require.NoError(t, dead.Close())
	for _, c := range []struct {
		name, want string
		status     int
		args       []string
	}{
		{"no such store", `-store "mysql" is none of memory, sqlite, postgres, redis`, 2, []string{"-store", "mysql"}},
		{"an empty directory name", "-data is empty", 2, []string{"-data", ""}},
		{"an empty DSN", "-dsn is empty", 2, []string{"-store", "redis", "-dsn", ""}},
		{"no DSN", "-store postgres needs a -dsn", 2, []string{"-store", "postgres"}},
		{"a DSN for a file", "-dsn is for -store postgres and redis, not for sqlite", 2, []string{"-dsn", "redis://127.0.0.1"}},
		{"a directory for a server", "-data is for -store sqlite, not for redis", 2, []string{"-store", "redis", "-dsn", "redis://127.0.0.1", "-data", "x"}},
		{"a key for nothing", "-key is for stores that last", 2, []string{"-store", "memory", "-key", "x"}},
		{"a DSN of another kind", "-dsn is not for PostgreSQL", 2, []string{"-store", "postgres", "-dsn", "mysql://me:hunter2@127.0.0.1/x"}},
		{"a malformed DSN", "-dsn is not for PostgreSQL", 2, []string{"-store", "postgres", "-dsn", "postgres://me:hunter2@127.0.0.1:no/x"}},
		{"a malformed DSN for Redis", "-dsn is not for Redis", 2, []string{"-store", "redis", "-dsn", "redis://:hunter2@127.0.0.1:no"}},
		{"no PostgreSQL", "connection refused", 1, []string{"-store", "postgres", "-dsn", "postgres://me:hunter2@" + nobody + "/x"}},
		{"no Redis", "connection refused", 1, []string{"-store", "redis", "-dsn", "redis://:hunter2@" + nobody}},
		{"a file for a directory", plain, 1, []string{"-data", plain}},
		{"below a file", plain, 1, []string{"-data", filepath.Join(plain, "data")}},
		{"a key below a file", "the server's key", 1, []string{"-data", t.TempDir(), "-key", filepath.Join(plain, "key")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, stdout, stderr := ended(t, c.args...)
			require.Equal(t, c.status, status, "%s", stderr)
			require.Empty(t, stdout)
			require.Contains(t, stderr, c.want)
			require.Equal(t, 1, strings.Count(stderr, "\n"), "%s", stderr)
			require.NotContains(t, stderr, "hunter2")
		})
	}
	fails := func(t *testing.T, dir, want string) {
		t.Helper()
		before := listed(dir)
		status, stdout, stderr := ended(t, "-data", dir)
		require.Equal(t, 1, status, "%s", stderr)
		require.Empty(t, stdout)
		require.Contains(t, stderr, want)
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%s", stderr)
		require.Equal(t, before, listed(dir), "nothing is half made")
	}
	t.Run("a key that is lost", func(t *testing.T) {
		dir := launched(t)
		require.NoError(t, os.Remove(filepath.Join(dir, "key")))
		fails(t, dir, "the server's key: "+filepath.Join(dir, "key")+" is not there")
	})
	t.Run("another key", func(t *testing.T) {
		dir := launched(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte(strings.Repeat("ab", 32)), 0o600))
		fails(t, dir, "the key is not the one that the database was begun with")
	})
	t.Run("no key", func(t *testing.T) {
		dir := launched(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte("secretish"), 0o600))
		fails(t, dir, "does not hold 64 hexadecimal digits")
	})
	t.Run("a key for all to see", func(t *testing.T) {
		dir := launched(t)
		require.NoError(t, os.Chmod(filepath.Join(dir, "key"), 0o644))
		fails(t, dir, "chmod 600")
	})
	t.Run("no database", func(t *testing.T) {
		dir := launched(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "groupchat.db"), []byte(strings.Repeat("no database at all. ", 100)), 0o600))
		fails(t, dir, "not a database")
	})
	t.Run("a file from the future", func(t *testing.T) {
		dir := launched(t)
		db, err := sql.Open("sqlite", filepath.Join(dir, "groupchat.db"))
		require.NoError(t, err)
		_, err = db.Exec("UPDATE behest_schema SET version = version + 1000")
		require.NoError(t, err)
		require.NoError(t, db.Close())
		fails(t, dir, "which a later release has made")
	})
	t.Run("a schema from the future", func(t *testing.T) {
		dsn := postgres(t)
		require.NoError(t, launch(t, options{store: "postgres", dsn: dsn}).stop())
		db, err := sql.Open("pgx", dsn)
		require.NoError(t, err)
		defer db.Close()
		_, err = db.Exec("UPDATE behest_schema SET version = version + 1000")
		require.NoError(t, err)
		status, _, stderr := ended(t, "-store", "postgres", "-dsn", dsn)
		require.Equal(t, 1, status)
		require.Contains(t, stderr, "which a later release has made")
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%s", stderr)
	})
	t.Run("with and without a key", func(t *testing.T) {
		key := filepath.Join(t.TempDir(), "key")
		flags := []string{"-store", "redis", "-dsn", redisServer(t)}
		spawn(t, flags...).kill()
		status, _, stderr := ended(t, append(flags, "-key", key)...)
		require.Equal(t, 1, status)
		require.Contains(t, stderr, "the database was begun without -key: start without it")
		require.NoFileExists(t, key)
		flags[3] = redisServer(t)
		spawn(t, append(flags, "-key", key)...).kill()
		for _, other := range [][]string{nil, {"-key", key + "2"}, {"-key", filepath.Join(launched(t), "key")}} {
			status, _, stderr := ended(t, append(flags, other...)...)
			require.Equal(t, 1, status)
			require.Contains(t, stderr, "the database was begun with")
			require.NoFileExists(t, key+"2")
		}
	})
}

// Without -data nothing is left behind.
func TestTheTemporaryDirectory(t *testing.T) {
	s := spawn(t)
	s.login("zhang-san").say("42", "", "hello")
	said := s.interrupt()
	dir, rest, ok := strings.Cut(strings.TrimPrefix(said, "all data is in "), ", which is removed at the end: -data DIR keeps it\n")
	require.True(t, ok, said)
	require.Empty(t, rest)
	require.NotEmpty(t, dir)
	require.NoDirExists(t, dir)
}

// Many that start at the same time have one key, and one past.
func TestStartingAtOnce(t *testing.T) {
	everyStore(t, func(t *testing.T, o options) {
		if o.store == "memory" {
			t.Skip("memory is nobody else's")
		}
		o.seed, o.pace = true, time.Millisecond
		if o.store != "sqlite" {
			o.key = filepath.Join(t.TempDir(), "key")
		}
		var sites [4]*testSite
		var wg sync.WaitGroup
		for i := range sites {
			wg.Go(func() { sites[i] = launch(t, o) })
		}
		wg.Wait()
		require.NotContains(t, sites, (*testSite)(nil))
		zhang := sites[0].login("zhang-san")
		require.Len(t, zhang.on(sites[3]).list("42"), 5)
		zhang.on(sites[1]).say("42", "", "@bookbot a storm")
		require.Equal(t, "zhang-san", zhang.on(sites[2]).waitForMessage("42", "This one, perhaps?").Account)
	})
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var keys [16]string
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			if key, err := keyFile(path, true); err == nil {
				keys[i] = key.Reveal()
			}
		})
	}
	wg.Wait()
	require.Len(t, keys[0], 32)
	for _, key := range keys {
		require.Equal(t, keys[0], key)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, files, 1)
	_, err = keyFile(path+"2", false)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What rows promise, wherever they are.
func TestRows(t *testing.T) {
	everyStore(t, func(t *testing.T, o options) {
		m, err := o.open(t.Context(), slog.New(slog.DiscardHandler))
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		require.NoError(t, err)
		ctx, in := t.Context(), m.rows
		first, err := in.rev(ctx)
		require.NoError(t, err)
		got, err := in.get(ctx, "p", "a")
		require.NoError(t, err)
		require.Zero(t, got.rev)
		for _, name := range []string{"b", "a", "ä\n'\\ \"%"} {
			ok, err := in.put(ctx, "p", row{name: name, value: []byte(`{"of":"` + "♥" + `"}`)})
			require.NoError(t, err)
			require.True(t, ok)
			ok, err = in.put(ctx, "p", row{name: name, value: []byte(`"again"`)})
			require.NoError(t, err)
			require.False(t, ok, "it is there")
		}
		list, err := in.list(ctx, "p", first)
		require.NoError(t, err)
		require.Len(t, list, 3)
		require.Equal(t, "b", list[0].name)
		require.Equal(t, "ä\n'\\ \"%", list[2].name)
		require.Equal(t, `{"of":"♥"}`, string(list[2].value))
		old := list[0]
		ok, err := in.put(ctx, "p", row{"b", old.rev, []byte(`2`)})
		require.NoError(t, err)
		require.True(t, ok)
		ok, err = in.put(ctx, "p", row{"b", old.rev, []byte(`3`)})
		require.NoError(t, err)
		require.False(t, ok, "it has changed meanwhile")
		list, err = in.list(ctx, "p", list[2].rev)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "2", string(list[0].value))
		rev, err := in.rev(ctx)
		require.NoError(t, err)
		require.GreaterOrEqual(t, rev, list[0].rev)
		require.NoError(t, in.remove(ctx, "p", "b", "nothing"))
		require.NoError(t, in.remove(ctx, "p"))
		list, err = in.list(ctx, "p", 0)
		require.NoError(t, err)
		require.Len(t, list, 2)
		none, err := in.list(ctx, "q", 0)
		require.NoError(t, err)
		require.Empty(t, none)

		// Changes at once are all made, and no number is given twice.
		var numbers sync.Map
		var wg sync.WaitGroup
		var faults atomic.Int64
		for range 8 {
			wg.Go(func() {
				for range 5 {
					n, err := in.serial(ctx)
					if _, twice := numbers.LoadOrStore(n, true); err != nil || twice {
						faults.Add(1)
					}
					if _, err := change(ctx, in, "p", "count", 0, func(n *int) (bool, error) { *n++; return true, nil }); err != nil {
						faults.Add(1)
					}
				}
			})
		}
		wg.Wait()
		require.Zero(t, faults.Load())
		var n int
		require.NoError(t, load(ctx, in, "p", "count", &n))
		require.Equal(t, 40, n)

		// A transaction that fails leaves nothing, where there are transactions.
		_ = in.together(ctx, func(ctx context.Context, _ store.Store) error {
			_, err := in.put(ctx, "p", row{name: "undone", value: []byte(`1`)})
			require.NoError(t, err)
			return io.EOF
		})
		got, err = in.get(ctx, "p", "undone")
		require.NoError(t, err)
		require.Equal(t, o.store == "sqlite" || o.store == "postgres", got.rev == 0)
	})
}

// The example's file is one that package sqlite opens, and its tables stand beside behest's.
func TestTheFileIsSQLites(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, launch(t, options{store: "sqlite", data: dir, seed: true}).stop())
	st, err := sqlite.Open(filepath.Join(dir, "groupchat.db"))
	require.NoError(t, err)
	require.NoError(t, st.Close())
	db, err := sql.Open("sqlite", filepath.Join(dir, "groupchat.db"))
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.SQLite))
	var words string
	require.NoError(t, db.QueryRow("SELECT value FROM groupchat_rows WHERE place = 'messages/42' AND name = 'm1'").Scan(&words))
	require.Contains(t, words, "I finished the last one on the train.")
}
