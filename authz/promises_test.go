package authz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A world is a social server of one or more nodes, which share a store and a key, and four apps: bookbot polls and takes links, pushbot has a webhook, mallory polls, rs introspects.
type world struct {
	tb       testing.TB
	clock    *authztest.Clock
	store    *spyStore
	nodes    []*node
	secrets  map[string]string
	http     *http.Client
	pushed   chan app.Grant // what pushbot was handed
	pushes   atomic.Int64   // how often its webhook was called
	denied   sync.Map       // grant.Access.Account + " " + action, for which Permit says no
	permit   atomic.Pointer[error]
	log      lockedBuffer
	wire     lockedBuffer // what nodes answered to anybody but the token, grants and link endpoints
	posts    lockedPosts
	stop     context.CancelFunc
	stopped  chan struct{}
	serial   atomic.Int64
	receiver *httptest.Server
}

type node struct {
	*authz.Server
	w   *world
	url string
}

type post struct{ account, app, domain, text string }

type lockedPosts struct {
	mu   sync.Mutex
	list []post
}

func (l *lockedPosts) add(p post) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, p)
}

func (l *lockedPosts) all() []post {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]post(nil), l.list...)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A spyStore counts calls, keeps every byte that was written, and fails with an error if it has one.
type spyStore struct {
	store.Store
	shared         *spyStore // another node's, which counts, keeps and fails for this one as well
	calls, applies atomic.Int64
	fault          atomic.Pointer[error]
	written        lockedBuffer
}

func (s *spyStore) root() *spyStore {
	if s.shared != nil {
		return s.shared
	}
	return s
}

func (s *spyStore) called() error {
	s.root().calls.Add(1)
	if e := s.root().fault.Load(); e != nil {
		return *e
	}
	return nil
}

func (s *spyStore) fail(err error) {
	if err == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&err)
}

func (s *spyStore) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if err := s.called(); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, kind, ids...)
}

func (s *spyStore) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	if err := s.called(); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, q)
}

func (s *spyStore) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	// What Run writes by itself, refusals and what became of deliveries, is nobody's call.
	if slices.ContainsFunc(ops, func(op store.Op) bool { return op.Record.Kind != "ledger" && op.Record.Kind != "push" }) {
		s.root().applies.Add(1)
	}
	if err := s.called(); err != nil {
		return store.Outcome{}, err
	}
	for _, op := range ops {
		fmt.Fprintf(&s.root().written, "%s %s %s %s %s\n", op.Record.Kind, op.Record.ID, op.Record.Owner, op.Record.App, op.Record.Data)
	}
	return s.Store.Apply(ctx, now, ops)
}

func (s *spyStore) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if err := s.called(); err != nil {
		return nil, err
	}
	return s.Store.Claim(ctx, q, until)
}

func (s *spyStore) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := s.called(); err != nil {
		return 0, err
	}
	return s.Store.Purge(ctx, kind, before, n)
}

// newWorld makes the nodes, which share a store in memory; change may alter the Config of each before it is used.
func newWorld(tb testing.TB, nodes int, change ...func(node int, c *authz.Config)) *world {
	return newWorldOn(tb, stores.Memory(tb), nodes, change...)
}

// newWorldOn has another sort of store, which each node opens by itself.
func newWorldOn(tb testing.TB, sort stores.Maker, nodes int, change ...func(node int, c *authz.Config)) *world {
	open := sort.New(tb)
	w := &world{tb: tb, clock: authztest.NewClock(), store: &spyStore{Store: open()}, pushed: make(chan app.Grant, 1000), stopped: make(chan struct{}),
		secrets: map[string]string{"bookbot": "book secret +%&:", "pushbot": "push-secret", "mallory": "mallory-secret", "rs": "rs-secret"}}
	w.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	hookSecret := webhook.NewSecret()
	receiver := &app.Receiver{Keys: []webhook.Key{hookSecret}, Now: w.clock.Now, Log: slog.New(slog.DiscardHandler),
		Handle: func(_ context.Context, g app.Grant) error { w.pushed <- g; return nil }}
	w.receiver = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.pushes.Add(1)
		receiver.ServeHTTP(rw, r)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	var wg sync.WaitGroup
	for i := range nodes {
		mine := w.store
		if i > 0 {
			mine = &spyStore{Store: open(), shared: w.store}
		}
		c := authz.Config{
			Issuer: "https://social.example", Store: mine, Key: grant.NewSecret("the key is " + strings.Repeat("k", 32)),
			Permit: w.mayDo, Now: w.clock.Now, Log: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Apps: []authz.App{
				{ID: "bookbot", Name: "BookBot", Actions: []string{"message.write", "member.read"}, RedirectURIs: []string{"https://bookbot.example/cb?lang=zh"}},
				{ID: "pushbot", Actions: []string{"message.write"}, Webhook: w.receiver.URL + "/hook", WebhookSecret: grant.NewSecret(hookSecret.Reveal())},
				{ID: "mallory", Actions: []string{"message.write"}},
				{ID: "rs", Introspect: true},
			},
			Triggers: []grant.Trigger{
				{ID: "book", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: 5, RedeemWithin: time.Minute},
				{ID: "link", App: "bookbot", On: grant.LinkOpen, In: "group:*", Allow: []string{"message.write", "member.read"}},
				{ID: "push", App: "pushbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: 5},
				{ID: "mal", App: "mallory", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}},
				{ID: "mal2", App: "mallory", On: grant.MessagePost, In: "group:*", Allow: []string{"message.write"}, Consent: grant.Implied, Match: grant.Match{Keywords: []string{"free"}}},
			},
			AllowWebhooksTo: []string{"127.0.0.1"},
		}
		for j := range c.Apps {
			c.Apps[j].Secret = grant.NewSecret(w.secrets[c.Apps[j].ID])
		}
		for _, f := range change {
			f(i, &c)
		}
		az, err := authz.New(c)
		require.NoError(tb, err)
		n := &node{Server: az, w: w}
		mux := http.NewServeMux()
		az.Routes(mux.Handle)
		mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(http.HandlerFunc(n.postMessage)))
		mux.Handle("POST /groups/{group}/threads/{thread}/messages", az.Require("group:{group}/thread:{thread}/message.write")(http.HandlerFunc(n.postMessage)))
		mux.Handle("GET /groups/{group}/members", az.Require("group:{group}/member.read")(http.HandlerFunc(n.postMessage)))
		server := httptest.NewServer(mux)
		n.url = server.URL
		w.nodes = append(w.nodes, n)
		wg.Go(func() { _ = az.Run(ctx) })
		tb.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
	}
	go func() { wg.Wait(); close(w.stopped) }()
	tb.Cleanup(func() {
		cancel()
		<-w.stopped
		w.receiver.Close()
		w.http.CloseIdleConnections()
	})
	return w
}

// mayDo lets members do everything in groups 42 and 7, but for what was denied.
func (w *world) mayDo(_ context.Context, a grant.Access) error {
	if e := w.permit.Load(); e != nil {
		return *e
	}
	root := a.Scope.Domain().Root().String()
	if _, no := w.denied.Load(a.Account + " " + a.Scope.Action()); no || root != "group:42" && root != "group:7" {
		return fmt.Errorf("%w: no member", grant.ErrDenied)
	}
	return nil
}

// postMessage does what a social server does: it keeps the message, and tells of the operations in it.
func (n *node) postMessage(rw http.ResponseWriter, r *http.Request) {
	d, ok := authz.FromContext(r.Context())
	if !ok {
		n.w.tb.Error("no delegation")
	}
	text, _ := io.ReadAll(r.Body)
	n.w.posts.add(post{d.Account, d.App, d.Domain.String(), string(text)})
	id := fmt.Sprintf("post-%d", n.w.serial.Add(1))
	events := []grant.Event{{ID: id, Operation: grant.MessagePost, Account: d.Account, Domain: d.Domain, Text: string(text)}}
	for _, name := range []string{"bookbot", "pushbot", "mallory"} {
		if strings.Contains(string(text), "@"+name) {
			events = append(events, grant.Event{ID: id, Operation: grant.Mention, Account: d.Account, Domain: d.Domain, App: name, Text: string(text)})
		}
	}
	if issued, err := n.Emit(r.Context(), events...); err != nil || len(issued) > 0 {
		n.w.tb.Errorf("an app's post issued %d grants, %v", len(issued), err)
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(http.StatusCreated)
	fmt.Fprintf(rw, `{"id":%q,"via":%q}`, id, d.App)
}

// node returns the i-th node, round and round.
func (w *world) node(i int) *node { return w.nodes[i%len(w.nodes)] }

// last is another node than the first, if there is another.
func (w *world) last() *node { return w.nodes[len(w.nodes)-1] }

func (w *world) mention(id, account, bot, domain string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: account, App: bot, Domain: scope.MustDomain(domain), Text: "@" + bot + " do it"}
}

// emit has the first node see a mention, which must issue one grant.
func (w *world) emit(account, bot, domain string) authz.Issued {
	w.tb.Helper()
	issued, err := w.nodes[0].Emit(context.Background(), w.mention(fmt.Sprintf("m%d", w.serial.Add(1)), account, bot, domain))
	require.NoError(w.tb, err)
	require.Len(w.tb, issued, 1)
	return issued[0]
}

// token goes the whole way: mention, poll or push, redemption.
func (w *world) token(account, bot, domain string) string {
	w.tb.Helper()
	i := w.emit(account, bot, domain)
	var code string
	if i.Deliver == grant.Push {
		g := <-w.pushed
		require.Equal(w.tb, i.ID, g.ID)
		code = g.Code.Reveal()
	} else {
		code = w.last().poll(bot, 1)[0]["code"].(string)
	}
	a := w.nodes[0].redeem(bot, code)
	require.Equal(w.tb, 200, a.status, a.body)
	return a.json["access_token"].(string)
}

type answer struct {
	status int
	header http.Header
	body   string
	json   map[string]any
}

func (a answer) reason() string { s, _ := a.json["error_reason"].(string); return s }

func (n *node) send(req *http.Request) answer {
	res, err := n.w.http.Do(req)
	if err != nil {
		n.w.tb.Error(err)
		return answer{}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		n.w.tb.Error(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, body: string(body)}
	_ = json.Unmarshal(body, &a.json)
	if !strings.HasSuffix(req.URL.Path, "/token") && !strings.HasSuffix(req.URL.Path, "/grants") || a.status != 200 {
		fmt.Fprintln(&n.w.wire, req.URL.Path, a.status, a.header, a.body)
	}
	return a
}

func (n *node) form(bot, path string, form url.Values) answer {
	req, err := http.NewRequest("POST", n.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		n.w.tb.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(bot, url.QueryEscape(n.w.secrets[bot]))
	return n.send(req)
}

func (n *node) redeem(bot, code string) answer {
	return n.form(bot, "/oauth2/token", url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {code}})
}

func (n *node) introspect(bot, token string) answer {
	return n.form(bot, "/oauth2/introspect", url.Values{"token": {token}})
}

// poll fetches the waiting grants, of which there must be so many.
func (n *node) poll(bot string, want int) []map[string]any {
	n.w.tb.Helper()
	req, err := http.NewRequest("GET", n.url+"/oauth2/grants", nil)
	require.NoError(n.w.tb, err)
	req.SetBasicAuth(bot, url.QueryEscape(n.w.secrets[bot]))
	a := n.send(req)
	require.Equal(n.w.tb, 200, a.status, a.body)
	var out struct{ Grants []map[string]any }
	require.NoError(n.w.tb, json.Unmarshal([]byte(a.body), &out))
	require.Len(n.w.tb, out.Grants, want)
	return out.Grants
}

// call posts a message to a path with a token.
func (n *node) call(token, path, text string) answer {
	req, err := http.NewRequest("POST", n.url+path, strings.NewReader(text))
	if err != nil {
		n.w.tb.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return n.send(req)
}

const in42 = "/groups/42/messages"

// at64 calls f 64 times at once and counts its answers.
func at64[K comparable](f func(i int) K) map[K]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	count, start := map[K]int{}, make(chan struct{})
	for i := range 64 {
		wg.Go(func() {
			<-start
			k := f(i)
			mu.Lock()
			defer mu.Unlock()
			count[k]++
		})
	}
	close(start)
	wg.Wait()
	return count
}

// onNodes runs a promise on every store: on one node, and on two that share it and a key.
func onNodes(t *testing.T, f func(t *testing.T, w *world), change ...func(int, *authz.Config)) {
	stores.Each(t, func(t *testing.T, sort stores.Maker) {
		for _, nodes := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
				f(t, newWorldOn(t, sort, nodes, change...))
			})
		}
	})
}

func TestP1Cause(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		// Nothing happened, nothing waits.
		w.node(0).poll("bookbot", 0)
		w.node(1).poll("pushbot", 0)
		// What is no predetermined operation causes nothing: another operation, another place, another app's.
		for _, ev := range []grant.Event{
			{ID: "x", Operation: grant.ReactionAdd, Account: "zhang-san", Domain: scope.MustDomain("group:42")},
			{ID: "x", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("feed:42")},
			{ID: "x", Operation: grant.Mention, Account: "zhang-san", App: "rs", Domain: scope.MustDomain("group:42")},
		} {
			issued, err := w.node(0).Emit(t.Context(), ev)
			require.NoError(t, err)
			require.Empty(t, issued)
		}
		w.node(0).poll("bookbot", 0)

		// Two users mention the app: each token is of who did it, where they did it.
		for _, user := range []string{"zhang-san", "li-si"} {
			for _, bot := range []string{"bookbot", "pushbot"} {
				token := w.token(user, bot, "group:42")
				seen := w.last().introspect("rs", token)
				require.Equal(t, user, seen.json["username"])
				require.Equal(t, "group:42", seen.json["domain"])
				before := len(w.posts.all())
				require.Equal(t, 201, w.last().call(token, in42, "hello").status)
				require.Equal(t, post{user, bot, "group:42", "hello"}, w.posts.all()[before])
				d, err := w.last().Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
				require.NoError(t, err)
				require.Equal(t, grant.Mention, d.Operation)
				require.Equal(t, fmt.Sprintf("m%d", w.serial.Load()-1), d.Event) // the post has taken a number too
			}
		}

		// Whatever else an app can get has no power over an account.
		access := w.node(0).form("bookbot", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}})
		require.Equal(t, 200, access.status)
		code := w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
		for _, credential := range []string{access.json["access_token"].(string), code, w.secrets["bookbot"]} {
			a := w.last().call(credential, in42, "never")
			require.Equal(t, 401, a.status)
			require.Empty(t, a.reason())
		}
		for _, p := range w.posts.all() {
			require.NotEqual(t, "never", p.text)
		}
	})
}

func TestP2OncePerCause(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		for _, bot := range []string{"bookbot", "pushbot"} {
			ev := w.mention("the message to "+bot, "zhang-san", bot, "group:42")
			ids := at64(func(i int) string {
				issued, err := w.node(i).Emit(t.Context(), ev)
				if err != nil || len(issued) != 1 {
					return fmt.Sprint(len(issued), err)
				}
				return issued[0].ID
			})
			require.Len(t, ids, 1, "%v", ids)
			grants, err := w.last().Engine().Grants(t.Context(), "zhang-san", bot, true)
			require.NoError(t, err)
			require.Len(t, grants, 1)
			require.Equal(t, 64, ids[grants[0].ID])

			// Emitted again with other content, on either node.
			ev.Text = "something else"
			for _, n := range w.nodes {
				issued, err := n.Emit(t.Context(), ev)
				require.ErrorIs(t, err, grant.ErrInvalid)
				require.ErrorContains(t, err, "other content")
				require.Empty(t, issued)
			}
		}
		// One code reaches each app.
		require.Len(t, w.node(0).poll("bookbot", 1), 1)
		<-w.pushed
		w.stop()
		<-w.stopped
		left, err := w.store.List(t.Context(), store.Query{Kind: "push"})
		require.NoError(t, err)
		require.Empty(t, left)
		require.Empty(t, w.pushed)
		require.EqualValues(t, 1, w.pushes.Load())
	})
}

func TestP3Counted(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		for _, bot := range []string{"bookbot", "pushbot"} {
			code := w.emit("zhang-san", bot, "group:42").Code.Reveal()
			var token atomic.Pointer[string]
			won := at64(func(i int) string {
				a := w.node(i).redeem(bot, code)
				if a.status == 200 {
					text := a.json["access_token"].(string)
					token.Store(&text)
				}
				return fmt.Sprintln(a.status, a.json["error"], a.json["error_description"])
			})
			require.Equal(t, map[string]int{"200 <nil> <nil>\n": 1, "400 invalid_grant the code was redeemed before\n": 63}, won)

			before := len(w.posts.all())
			spent := at64(func(i int) string {
				a := w.node(i).call(*token.Load(), in42, "hello")
				return fmt.Sprintln(a.status, a.reason())
			})
			require.Equal(t, map[string]int{"201 \n": 5, "401 used_up\n": 59}, spent)
			require.Len(t, w.posts.all(), before+5)
			for _, n := range w.nodes {
				require.Equal(t, "used_up", n.call(*token.Load(), in42, "hello").reason())
				require.Equal(t, `{"active":false}`+"\n", n.introspect("rs", *token.Load()).body)
			}
		}
	})
}

func TestP4Narrow(t *testing.T) {
	t.Run("a trigger beyond its app is an error at the start", func(t *testing.T) {
		_, err := authz.New(authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
			Apps:     []authz.App{{ID: "bookbot", Secret: grant.NewSecret("long enough"), Actions: []string{"member.read"}}},
			Triggers: []grant.Trigger{{ID: "book", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}}}})
		require.ErrorContains(t, err, "message.write")
		require.ErrorContains(t, err, "book")
	})
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		link := func(id string) ([]authz.Issued, error) {
			return first.Emit(t.Context(), grant.Event{ID: id, Operation: grant.LinkOpen, Account: "zhang-san", App: "bookbot",
				Domain: scope.MustDomain("group:42/thread:1"), Target: "https://bookbot.example/book/1"})
		}
		issued, err := link("both")
		require.NoError(t, err)
		require.Equal(t, "group:42/thread:1/member.read group:42/thread:1/message.write", issued[0].Scope().String())

		// The user's own rights at issue: what is left of two actions is one, of one is none, which is on record.
		w.denied.Store("zhang-san message.write", true)
		w.clock.Advance(time.Millisecond) // so that the order on record is sure
		issued, err = link("one")
		require.NoError(t, err)
		require.Equal(t, "group:42/thread:1/member.read", issued[0].Scope().String())
		w.clock.Advance(time.Millisecond)
		_, err = first.Emit(t.Context(), w.mention("none", "zhang-san", "bookbot", "group:42"))
		require.ErrorIs(t, err, grant.ErrDenied)
		require.NoError(t, first.Engine().Flush(t.Context()))
		ledger, err := last.Engine().Ledger(t.Context(), "zhang-san", "", 1)
		require.NoError(t, err)
		require.Equal(t, []string{"refused", "denied", "bookbot"}, []string{ledger[0].What, ledger[0].Reason, ledger[0].App})
		w.denied.Clear()

		// Never beyond the domain, nor the actions; below the domain is within it.
		token := w.token("zhang-san", "bookbot", "group:42")
		require.Equal(t, "wrong_domain", last.call(token, "/groups/7/messages", "x").reason())
		require.Equal(t, "wrong_domain", last.call(token, "/groups/421/messages", "x").reason())
		require.Equal(t, "wrong_domain", last.call(token, "/groups/42%2Fthread:1/messages", "x").reason())
		req, err := http.NewRequest("GET", last.url+"/groups/42/members", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		require.Equal(t, "wrong_action", last.send(req).reason())
		require.Equal(t, 201, last.call(token, "/groups/42/threads/9/messages", "below").status)
		thread := w.token("zhang-san", "bookbot", "group:42/thread:9")
		require.Equal(t, "wrong_domain", last.call(thread, in42, "above").reason())
		require.Equal(t, 201, last.call(thread, "/groups/42/threads/9/messages", "there").status)

		// The user's rights at each use, and a refusal spends nothing.
		left := func() any { return first.introspect("rs", token).json["uses_left"] }
		require.EqualValues(t, 4, left())
		w.denied.Store("zhang-san message.write", true)
		a := last.call(token, in42, "x")
		require.Equal(t, []any{403, "rights_changed"}, []any{a.status, a.reason()})
		w.denied.Clear()
		require.EqualValues(t, 4, left())
		require.Equal(t, 201, last.call(token, in42, "x").status)

		// The app's registration at each use: a node that was started with less.
		for _, less := range []struct {
			reason string
			change func(*authz.App)
		}{
			{"rights_changed", func(a *authz.App) { a.Actions = []string{"member.read"} }},
			{"revoked", func(a *authz.App) { a.ID = "renamed" }},
		} {
			narrow := newWorld(t, 1, func(_ int, c *authz.Config) {
				c.Store, c.Now, c.Triggers = w.store, w.clock.Now, nil
				less.change(&c.Apps[0])
			})
			require.Equal(t, less.reason, narrow.nodes[0].call(token, in42, "x").reason())
		}
		require.EqualValues(t, 3, left())
	})
}

func TestP5Revocable(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		// once has the first node revoke, in one write, and the last refuse from the next use on.
		once := func(revoke func() error, dead []string, alive []string) {
			t.Helper()
			for _, token := range append(append([]string(nil), dead...), alive...) {
				require.Equal(t, 201, last.call(token, in42, "before").status)
			}
			before := w.store.applies.Load()
			require.NoError(t, revoke())
			require.EqualValues(t, 1, w.store.applies.Load()-before)
			for _, token := range dead {
				for _, n := range []*node{last, first} {
					a := n.call(token, in42, "after")
					require.Equal(t, []any{401, "revoked"}, []any{a.status, a.reason()})
					require.Equal(t, false, n.introspect("rs", token).json["active"])
				}
			}
			for _, token := range alive {
				require.Equal(t, 201, last.call(token, in42, "others").status)
			}
		}
		idOf := func(token string) string { return first.introspect("rs", token).json["grant_id"].(string) }

		one, two, li := w.token("zhang-san", "bookbot", "group:42"), w.token("zhang-san", "bookbot", "group:42"), w.token("li-si", "bookbot", "group:42")
		once(func() error { return first.Engine().Revoke(t.Context(), "zhang-san", idOf(one)) }, []string{one}, []string{two, li})
		require.ErrorIs(t, first.Engine().Revoke(t.Context(), "li-si", idOf(two)), grant.ErrUnknown, "somebody else's")

		// An app here: not elsewhere, and no other app.
		here, mallory := w.token("zhang-san", "bookbot", "group:42/thread:1"), w.token("zhang-san", "mallory", "group:42")
		elsewhere := w.token("zhang-san", "bookbot", "group:7")
		waiting := w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
		once(func() error {
			return first.Engine().RevokeApp(t.Context(), "zhang-san", "bookbot", scope.MustDomain("group:42"))
		}, []string{two}, []string{li})
		require.Equal(t, "revoked", last.call(here, "/groups/42/threads/1/messages", "x").reason())
		require.Equal(t, 201, last.call(mallory, in42, "x").status)
		require.Equal(t, 201, last.call(elsewhere, "/groups/7/messages", "x").status)
		a := last.redeem("bookbot", waiting)
		require.Equal(t, []any{400, "invalid_grant", "the grant was revoked"}, []any{a.status, a.json["error"], a.json["error_description"]})
		last.poll("bookbot", 0)

		// All of an account's, and what is made afterwards lives.
		pushed := w.token("zhang-san", "pushbot", "group:42")
		again := w.token("zhang-san", "bookbot", "group:42")
		once(func() error { return first.Engine().RevokeAccount(t.Context(), "zhang-san") }, []string{pushed, again}, []string{li})
		require.Equal(t, "revoked", last.call(elsewhere, "/groups/7/messages", "x").reason())
		fresh := w.token("zhang-san", "bookbot", "group:42")
		require.Equal(t, 201, last.call(fresh, in42, "x").status)

		// By the app itself, and by no other (RFC 7009).
		require.Equal(t, 200, first.form("mallory", "/oauth2/revoke", url.Values{"token": {fresh}}).status)
		once(func() error { return nil2(first.form("bookbot", "/oauth2/revoke", url.Values{"token": {fresh}})) }, []string{fresh}, nil)
	}, func(_ int, c *authz.Config) {
		for i := range c.Triggers {
			c.Triggers[i].Uses = 100
		}
	})
}

func nil2(a answer) error {
	if a.status != 200 || a.body != "" {
		return errors.New(a.body)
	}
	return nil
}

// Revoked while 64 are at it: a call that begins after the revocation has returned is refused, wherever.
func TestP5RevokeUnderLoad(t *testing.T) { stores.Each(t, testP5RevokeUnderLoad) }

func testP5RevokeUnderLoad(t *testing.T, sort stores.Maker) {
	w := newWorldOn(t, sort, 2, func(_ int, c *authz.Config) { c.Triggers[0].Uses = grant.Unlimited })
	token := w.token("zhang-san", "bookbot", "group:42")
	revoked := make(chan struct{})
	var begun sync.WaitGroup
	begun.Add(64)
	go func() {
		defer close(revoked)
		begun.Wait()
		if err := w.nodes[0].Engine().RevokeAccount(context.Background(), "zhang-san"); err != nil {
			t.Error(err)
		}
	}()
	got := at64(func(i int) string {
		for n := 0; ; n++ {
			late := false
			select {
			case <-revoked:
				late = true
			default:
			}
			a := w.node(i+n).call(token, in42, "x")
			if n == 0 {
				begun.Done()
			}
			if late || a.status != 201 {
				return fmt.Sprintln(a.status, a.reason())
			}
		}
	})
	require.Equal(t, map[string]int{"401 revoked\n": 64}, got)
}

func TestP6Secret(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		secrets := []string{"the key is "}
		keep := func(list ...string) {
			for _, s := range list {
				require.Greater(t, len(s), 8)
				// Whole, as a URL has it, and a part that a cut would leave.
				secrets = append(secrets, s, url.QueryEscape(s), s[len(s)/2:])
			}
		}
		for bot, s := range w.secrets {
			keep(s, first.WebhookSecret(bot).Reveal())
		}

		// Everything that hands one out, and every way to be refused with one.
		for _, bot := range []string{"bookbot", "pushbot", "mallory"} {
			i := w.emit("zhang-san", bot, "group:42")
			code := i.Code.Reveal()
			keep(code)
			if bot == "pushbot" {
				<-w.pushed
			} else {
				require.Equal(t, code, first.poll(bot, 1)[0]["code"])
			}
			require.Equal(t, 400, last.redeem("rs", code).status)
			token := first.redeem(bot, code).json["access_token"].(string)
			keep(token)
			require.Equal(t, 400, last.redeem(bot, code).status)
			require.Equal(t, 201, last.call(token, in42, "x").status)
			require.Equal(t, 401, last.call(code, in42, "x").status)
			require.Equal(t, 401, last.call(token[:len(token)-1], in42, "x").status)
			require.Equal(t, 403, last.call(token, "/groups/7/messages", "x").status)
			require.Equal(t, 200, last.introspect("rs", token).status)
			require.Equal(t, 200, last.introspect("mallory", code).status)

			broken := errors.New("the store is down")
			w.store.fail(broken)
			require.Equal(t, 503, last.call(token, in42, "x").status)
			require.Equal(t, 503, last.redeem(bot, i.Code.Reveal()).status)
			require.Equal(t, 503, last.introspect("rs", token).status)
			require.Equal(t, 503, last.form(bot, "/oauth2/revoke", url.Values{"token": {token}}).status)
			w.store.fail(nil)
			permit := errors.New("the database of members is down")
			w.permit.Store(&permit)
			require.Equal(t, 503, last.call(token, in42, "x").status)
			_, err := first.Emit(t.Context(), w.mention("never", "zhang-san", bot, "group:42"))
			require.ErrorIs(t, err, permit)
			w.permit.Store(nil)

			for _, text := range printed(t, i, authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")}) {
				for _, s := range secrets {
					require.NotContains(t, text, s)
				}
			}
			require.Equal(t, 200, last.form(bot, "/oauth2/revoke", url.Values{"token": {token}}).status)
		}
		access := first.form("bookbot", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}).json["access_token"].(string)
		keep(access)
		last.introspect("rs", access)
		last.call(access, in42, "x")

		// The one place in a URL: a link with a code of a minute.
		links, err := first.Emit(t.Context(), grant.Event{ID: "l", Operation: grant.LinkOpen, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
		require.NoError(t, err)
		code := links[0].Code.Reveal()
		keep(code)
		require.Equal(t, "https://bookbot.example/cb?lang=zh&code="+code+"&iss=https%3A%2F%2Fsocial.example", links[0].Link())
		require.Equal(t, time.Minute, links[0].RedeemBy.Sub(w.clock.Now()))

		w.stop()
		<-w.stopped
		for name, text := range map[string]string{"log": w.log.String(), "answers": w.wire.String(), "store": w.store.written.String()} {
			require.NotEmpty(t, text, name)
			for _, s := range secrets {
				require.NotContains(t, text, s, name)
			}
			for _, prefix := range []string{"bhsc_", "bhst_", "bhat_", "whsec_", "whsk_"} {
				require.NotContains(t, text, prefix, name)
			}
		}
		require.Contains(t, w.log.String(), "the store is down", "the log has the cause")
		require.Contains(t, w.log.String(), "the database of members is down")
		require.NotContains(t, w.wire.String(), " is down", "and the client has not")
	})

	t.Run("types", func(t *testing.T) {
		secret := grant.NewSecret("do not print me")
		bot := authz.App{ID: "bookbot", Secret: secret, WebhookSecret: secret, Actions: []string{"message.write"}}
		config := authz.Config{Issuer: "https://social.example", Key: secret, Sealing: []grant.Secret{secret}, Apps: []authz.App{bot}}
		for _, text := range printed(t, secret, bot, &bot, []authz.App{bot}, map[string]any{"app": bot}, config, &config) {
			require.NotContains(t, text, "do not print me")
		}
		az, err := authz.New(authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil }, Apps: []authz.App{{ID: "bookbot", Secret: secret}}})
		require.NoError(t, err)
		for _, text := range printed(t, az, *az, az.WebhookSecret("bookbot")) {
			require.NotContains(t, text, "do not print me")
			require.NotContains(t, text, "whsec_")
		}
	})
}

// printed is values as all that prints would print them.
func printed(t *testing.T, values ...any) []string {
	t.Helper()
	var out []string
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			out = append(out, fmt.Sprintf(verb, v), fmt.Sprintf(verb, []any{v}))
		}
		if text, err := json.Marshal(v); err == nil {
			out = append(out, string(text))
		}
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		out = append(out, b.String())
	}
	return out
}

func TestP7NoLoops(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		// What the user says triggers.
		w.emit("zhang-san", "mallory", "group:42")
		require.Len(t, first.poll("mallory", 1), 1)
		issued, err := first.Emit(t.Context(), grant.Event{ID: "k", Operation: grant.MessagePost, Account: "zhang-san", Domain: scope.MustDomain("group:42"), Text: "is it free?"})
		require.NoError(t, err)
		require.Len(t, issued, 1)
		first.poll("mallory", 1)
		// The same words in the user's name, by an app, trigger nothing: postMessage emits, and nothing may come of it.
		for _, bot := range []string{"bookbot", "pushbot"} {
			token := w.token("zhang-san", bot, "group:42")
			require.Equal(t, 201, last.call(token, in42, "@mallory @pushbot @bookbot it is free").status)
		}
		first.poll("mallory", 0)
		first.poll("bookbot", 0)
		require.Empty(t, w.pushed)
	})

	t.Run("unless a trigger says so, and then not for ever", func(t *testing.T) {
		w := newWorld(t, 1, func(_ int, c *authz.Config) { c.Triggers[3].Chain = true })
		az := w.nodes[0]
		token := w.token("zhang-san", "mallory", "group:42")
		var depth int
		for ; ; depth++ {
			var issued []authz.Issued
			var err error
			h := az.Require("group:{group}/message.write")(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				r = r.WithContext(context.WithValue(context.WithoutCancel(r.Context()), http.ServerContextKey, "another"))
				issued, err = az.Emit(r.Context(), w.mention(fmt.Sprintf("chain%d", depth), "zhang-san", "mallory", "group:42"),
					w.mention(fmt.Sprintf("chain%d", depth), "zhang-san", "bookbot", "group:42")) // which does not chain
			}))
			r := httptest.NewRequest("POST", in42, nil)
			r.SetPathValue("group", "42")
			r.Header.Set("Authorization", "Bearer "+token)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			require.Equal(t, 200, rec.Code, rec.Body)
			if errors.Is(err, grant.ErrLimited) {
				require.Empty(t, issued)
				break
			}
			require.NoError(t, err)
			require.Len(t, issued, 1)
			require.Equal(t, "mallory", issued[0].App)
			token = az.redeem("mallory", issued[0].Code.Reveal()).json["access_token"].(string)
		}
		require.Equal(t, 4, depth)
	})
}

func TestP8OnTheRecord(t *testing.T) {
	for _, nodes := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			servers, mem := bubble(t, nodes)
			first, last := servers[0], servers[nodes-1]
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			for _, s := range servers {
				running.Go(func() { _ = s.Run(ctx) })
			}
			ledger := func() string {
				entries, err := last.Engine().Ledger(t.Context(), "zhang-san", "", 0)
				require.NoError(t, err)
				text := ""
				for i := len(entries) - 1; i >= 0; i-- { // the oldest first
					e := entries[i]
					require.Equal(t, "zhang-san", e.Account)
					require.Equal(t, "bookbot", e.App)
					text += fmt.Sprintf("%s %s %s×%d\n", e.What, e.Scope, e.Reason, e.Count)
				}
				return text
			}
			issued, err := first.Emit(t.Context(), bubbleMention("m1"))
			require.NoError(t, err)
			time.Sleep(time.Millisecond) // so that the order on record is sure
			_, token, err := first.Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
			require.NoError(t, err)
			use := func(s *authz.Server, want, reason string) {
				time.Sleep(time.Millisecond)
				_, err := s.Use(t.Context(), authz.Call{Token: token.Reveal(), Want: scope.MustParse(want)})
				require.Equal(t, reason, grant.Reason(err), "%v", err)
			}
			use(last, "group:42/message.write", "")
			use(first, "group:42/thread:1/message.write", "")
			at := time.Now()
			done := "issued group:42/message.write ×1\nredeemed group:42/message.write ×1\nused group:42/message.write ×1\nused group:42/thread:1/message.write ×1\n"
			require.Equal(t, done, ledger(), "in the same write")

			// Refusals follow within a second, repeats counted; forgeries are no account's.
			for range 3 {
				use(last, "group:7/message.write", "wrong_domain")
			}
			use(last, "group:42/message.write", "used_up")
			_, err = last.Use(t.Context(), authz.Call{Token: "bhst_forged", Want: scope.MustParse("group:42/message.write")})
			require.ErrorIs(t, err, grant.ErrUnknown)
			require.Equal(t, done, ledger())
			time.Sleep(time.Second - time.Since(at))
			synctest.Wait()
			done += "refused group:7/message.write wrong_domain×3\nrefused group:42/message.write used_up×1\n"
			require.Equal(t, done, ledger())

			// A store that fails at that moment gets them a moment later.
			mem.fail(errors.New("down"))
			use(first, "group:7/message.write", "wrong_domain")
			time.Sleep(3 * time.Second)
			mem.fail(nil)
			time.Sleep(time.Second)
			synctest.Wait()
			done += "refused group:7/message.write wrong_domain×1\n"
			require.Equal(t, done, ledger())

			// What is left at the end is written before Run returns.
			require.NoError(t, first.Engine().Revoke(t.Context(), "zhang-san", issued[0].ID))
			use(last, "group:42/message.write", "revoked")
			stop()
			running.Wait()
			done += "revoked  ×1\nrefused group:42/message.write revoked×1\n"
			require.Equal(t, done, ledger())
		})
	}
}

// The same with Run, on every store and by the real clock, without its second: that is TestP8OnTheRecord's.
func TestP8OnEveryStore(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		// record requires that this and nothing else is on record, the oldest first; or that it soon is, by Run.
		record := func(eventually bool, want ...string) {
			t.Helper()
			for tries := 0; ; tries++ {
				entries, err := last.Engine().Ledger(t.Context(), "zhang-san", "", 0)
				require.NoError(t, err)
				var got []string
				for _, e := range slices.Backward(entries) {
					require.Equal(t, "zhang-san", e.Account)
					require.Equal(t, "bookbot", e.App)
					got = append(got, fmt.Sprintf("%s %s %s×%d", e.What, e.Scope, e.Reason, e.Count))
				}
				if !eventually || slices.Equal(got, want) || tries == 1000 {
					require.Equal(t, want, got)
					return
				}
				<-tick.C
			}
		}
		step := func() { w.clock.Advance(time.Millisecond) } // so that the order on record is sure
		code := w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
		on := []string{"issued group:42/message.write ×1"}
		record(false, on...)
		step()
		token := last.redeem("bookbot", code).json["access_token"].(string)
		on = append(on, "redeemed group:42/message.write ×1")
		record(false, on...)
		for range 2 {
			step()
			require.Equal(t, 201, first.call(token, in42, "x").status)
			on = append(on, "used group:42/message.write ×1")
			record(false, on...)
		}
		step()
		id := first.introspect("rs", token).json["grant_id"].(string)
		require.NoError(t, last.Engine().Revoke(t.Context(), "zhang-san", id))
		on = append(on, "revoked  ×1")
		record(false, on...)

		// Refusals follow by themselves; what is no account's never does.
		step()
		require.Equal(t, "revoked", first.call(token, in42, "x").reason())
		require.Equal(t, 401, first.call("bhst_forged", in42, "x").status)
		on = append(on, "refused group:42/message.write revoked×1")
		record(true, on...)
		// What is left at the end is written before Run returns, by each node.
		step()
		require.Equal(t, "wrong_domain", last.call(token, "/groups/7/messages", "x").reason())
		w.stop()
		<-w.stopped
		record(false, append(on, "refused group:7/message.write wrong_domain×1")...)
	})
}

// bubble makes servers that share a store and a key, by the clock of a synctest bubble.
func bubble(tb testing.TB, nodes int, change ...func(*authz.Config)) ([]*authz.Server, *spyStore) {
	mem := &spyStore{Store: store.NewMemory()}
	var out []*authz.Server
	for range nodes {
		c := authz.Config{
			Issuer: "https://social.example", Store: mem, Key: grant.NewSecret(strings.Repeat("k", 32)),
			Permit: func(context.Context, grant.Access) error { return nil },
			Apps:   []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"message.write"}}},
			Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
				For: 10 * time.Minute, Uses: 2, RedeemWithin: time.Minute}},
		}
		for _, f := range change {
			f(&c)
		}
		az, err := authz.New(c)
		require.NoError(tb, err)
		out = append(out, az)
	}
	return out, mem
}

func bubbleMention(id string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42"), Text: "@bookbot"}
}

// forgeries are what strangers try, each made from a real token.
func forgeries(tb testing.TB, token string) map[string]string {
	other := newWorld(tb, 1, func(_ int, c *authz.Config) {
		c.Key = grant.NewSecret("another key, as long as " + strings.Repeat("k", 32))
	})
	flip := func(i int) string {
		b := []byte(token)
		if b[i]++; b[i] > 'z' {
			b[i] = 'A'
		}
		return string(b)
	}
	out := map[string]string{
		"made up":           "bhst_" + strings.Repeat("A", 300),
		"short":             "bhst_AAAA",
		"a prefix alone":    "bhst_",
		"another server's":  other.token("zhang-san", "bookbot", "group:42"),
		"a code":            other.emit("zhang-san", "bookbot", "group:42").Code.Reveal(),
		"no prefix":         token[len("bhst_"):],
		"another prefix":    "bhsc_" + token[len("bhst_"):],
		"an access token's": "bhat_" + strings.Repeat("A", 43),
		"cut":               token[:len(token)-4],
		"longer":            token + "AAAA",
		"padded":            token + "=",
		"a line break":      token[:30] + "\n" + token[30:],
		"huge":              "bhst_" + strings.Repeat("A", 1<<20),
		"two":               token + " " + token,
		"bytes":             "\x00\xff\xfe",
		"a JWT":             "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ6aGFuZy1zYW4ifQ.",
	}
	for i := len("bhst_"); i < len(token); i += 7 {
		out[fmt.Sprintf("changed at %d", i)] = flip(i)
	}
	return out
}

func TestP9CheapToRefuse(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		token := w.token("zhang-san", "bookbot", "group:42")
		forged := forgeries(t, token)
		last := w.last()
		w.stop() // so that nobody else calls the store
		<-w.stopped
		before := w.store.calls.Load()
		resolved := 0
		guards := map[string]http.Handler{
			"Require": last.Require("group:{group}/message.write")(http.NotFoundHandler()),
			"RequireFunc": last.RequireFunc(func(*http.Request) (scope.Scope, error) {
				resolved++
				return scope.MustParse("group:42/message.write"), nil
			})(http.NotFoundHandler()),
		}
		for name, text := range forged {
			for guard, h := range guards {
				r := httptest.NewRequest("POST", in42, nil)
				r.SetPathValue("group", "42")
				r.Header["Authorization"] = []string{"Bearer " + text}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				require.Equal(t, 401, rec.Code, "%s at %s", name, guard)
			}
			_, err := last.Use(t.Context(), authz.Call{Token: text, Want: scope.MustParse("group:42/message.write")})
			require.ErrorIs(t, err, grant.ErrUnknown, name)
			if len(text) < 1000 && name != "bytes" {
				a := last.introspect("rs", text)
				require.Equal(t, `{"active":false}`+"\n", a.body, name)
				require.Equal(t, 200, last.form("bookbot", "/oauth2/revoke", url.Values{"token": {text}}).status, name)
				require.Equal(t, "invalid_grant", last.redeem("bookbot", text).json["error"], name)
			}
		}
		require.Zero(t, w.store.calls.Load()-before, "the store was asked about a forgery")
		require.Zero(t, resolved)

		// Refusing a real token costs no more than accepting it, however often it is tried: one call or none, and nothing is written.
		costs := func(calls int, f func()) {
			t.Helper()
			before, wrote := w.store.calls.Load(), len(w.store.written.String())
			f()
			require.EqualValues(t, calls, w.store.calls.Load()-before)
			if calls == 0 {
				require.Len(t, w.store.written.String(), wrote)
			}
		}
		costs(5, func() {
			for range 5 {
				require.Equal(t, 201, last.call(token, in42, "x").status)
			}
		})
		costs(10, func() {
			for range 10 {
				require.Equal(t, "used_up", last.call(token, in42, "x").reason())
			}
		})
		costs(0, func() {
			for range 10 {
				require.Equal(t, "wrong_domain", last.call(token, "/groups/7/messages", "x").reason())
			}
			w.denied.Store("zhang-san message.write", true)
			require.Equal(t, "rights_changed", last.call(token, in42, "x").reason())
			w.clock.Advance(time.Hour)
			require.Equal(t, "expired", last.call(token, in42, "x").reason())
		})
	})
}

func TestP10Honest(t *testing.T) {
	onNodes(t, func(t *testing.T, w *world) {
		first, last := w.nodes[0], w.last()
		const realm = `Bearer realm="https://social.example"`
		spent, revoked, live := w.token("zhang-san", "bookbot", "group:42"), w.token("zhang-san", "bookbot", "group:42"), w.token("zhang-san", "bookbot", "group:42")
		for range 5 {
			require.Equal(t, 201, last.call(spent, in42, "x").status)
		}
		id := first.introspect("rs", revoked).json["grant_id"].(string)
		require.NoError(t, first.Engine().Revoke(t.Context(), "zhang-san", id))
		get := func(token, path string) answer {
			req, err := http.NewRequest("GET", last.url+path, nil)
			require.NoError(t, err)
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			return last.send(req)
		}
		check := func(a answer, status int, challenge, body string) {
			t.Helper()
			require.Equal(t, status, a.status, a.body)
			if challenge != "" {
				challenge += `, resource_metadata="https://social.example/.well-known/oauth-protected-resource"` // RFC 9728 §5.1
			}
			require.Equal(t, challenge, a.header.Get("WWW-Authenticate"))
			require.JSONEq(t, body, a.body)
			require.Equal(t, "application/json", a.header.Get("Content-Type"))
			require.Equal(t, "no-store", a.header.Get("Cache-Control"))
		}
		// The holder of a real token learns why.
		check(last.call(spent, in42, "x"), 401, realm+`, error="invalid_token", error_description="the token has no uses left"`,
			`{"error":"invalid_token","error_description":"the token has no uses left","error_reason":"used_up"}`)
		check(last.call(revoked, in42, "x"), 401, realm+`, error="invalid_token", error_description="the token was revoked"`,
			`{"error":"invalid_token","error_description":"the token was revoked","error_reason":"revoked"}`)
		check(last.call(live, "/groups/7/messages", "x"), 403,
			realm+`, error="insufficient_scope", error_description="the token is for another domain", scope="group:7/message.write"`,
			`{"error":"insufficient_scope","error_description":"the token is for another domain","error_reason":"wrong_domain","scope":"group:7/message.write"}`)
		check(get(live, "/groups/42/members"), 403,
			realm+`, error="insufficient_scope", error_description="the token is for other actions", scope="group:42/member.read"`,
			`{"error":"insufficient_scope","error_description":"the token is for other actions","error_reason":"wrong_action","scope":"group:42/member.read"}`)
		w.denied.Store("zhang-san message.write", true)
		check(last.call(live, in42, "x"), 403, realm+`, error="insufficient_scope", error_description="the account may no longer do this here"`,
			`{"error":"insufficient_scope","error_description":"the account may no longer do this here","error_reason":"rights_changed"}`)
		w.denied.Clear()

		// A fault of ours is not the client's business, and spends nothing. Whatever a Permit returns that is not ErrDenied is such a fault.
		for _, fault := range []error{errors.New("disk on fire"), context.DeadlineExceeded, scope.ErrWrongAction, scope.ErrWrongDomain, grant.ErrExpired, grant.ErrRevoked, grant.ErrUnknown} {
			fault = fmt.Errorf("permit: %w", fault)
			w.permit.Store(&fault)
			check(last.call(live, in42, "x"), 503, "", `{"error":"temporarily_unavailable","error_description":"the server could not decide"}`)
			w.permit.Store(nil)
		}
		// And an ErrDenied is a no, whatever else is in it.
		no := fmt.Errorf("%w: %w", scope.ErrWrongAction, grant.ErrDenied)
		w.permit.Store(&no)
		require.Equal(t, "rights_changed", last.call(live, in42, "x").reason())
		w.permit.Store(nil)
		w.store.fail(errors.New("disk on fire"))
		a := last.call(live, in42, "x")
		check(a, 503, "", `{"error":"temporarily_unavailable","error_description":"the server could not decide"}`)
		require.Equal(t, "1", a.header.Get("Retry-After"))
		w.store.fail(nil)
		require.Contains(t, w.log.String(), "disk on fire")
		require.EqualValues(t, 5, first.introspect("rs", live).json["uses_left"])

		// A stranger gets one and the same answer, whatever it was, also for a token that was real and has left no trace.
		check(last.call("", in42, "x"), 401, realm, `{"error_description":"a delegation token is required"}`)
		same := last.call("bhst_forged", in42, "x")
		check(same, 401, realm+`, error="invalid_token", error_description="the token is not valid"`,
			`{"error":"invalid_token","error_description":"the token is not valid"}`)
		forged := forgeries(t, live)
		forged["a real access token"] = first.form("bookbot", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}).json["access_token"].(string)
		forged["a real code"] = w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
		forged["the client secret"] = w.secrets["mallory"]
		for name, text := range forged {
			if name == "huge" || name == "bytes" || name == "a line break" {
				continue // not for a header: see TestRequireBearer
			}
			for _, path := range []string{in42, "/groups/7/messages"} {
				a := last.call(text, path, "x")
				require.Equal(t, same.status, a.status, name)
				require.Equal(t, same.body, a.body, name)
				a.header.Del("Date")
				same.header.Del("Date")
				require.Equal(t, same.header, a.header, name)
			}
		}
		w.clock.Advance(10 * time.Minute)
		check(last.call(live, in42, "x"), 401, realm+`, error="invalid_token", error_description="the token has expired"`,
			`{"error":"invalid_token","error_description":"the token has expired","error_reason":"expired"}`)
		require.Equal(t, "x", w.posts.all()[len(w.posts.all())-1].text)
		require.Len(t, w.posts.all(), 5, "what was refused has not run")
	})
}
