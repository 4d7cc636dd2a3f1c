package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// A testSite is a running groupchat, driven over HTTP alone.
type testSite struct {
	t    *testing.T
	base string
	skew *atomic.Int64 // how far its clock is ahead
	stop func() error
}

// launch runs groupchat on a free port until the test ends.
func launch(t *testing.T, o options) *testSite {
	t.Helper()
	s := &testSite{t: t, skew: &atomic.Int64{}}
	if o.addr == "" {
		o.addr = "127.0.0.1:0"
	}
	if o.store == "" {
		o.store = "memory"
	}
	o.now = func() time.Time { return time.Now().Add(time.Duration(s.skew.Load())) }
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := o.run(ctx, in, io.Discard)
		_ = in.CloseWithError(io.EOF)
		ended <- err
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("groupchat ended before it was ready: ", <-ended)
	}
	s.base = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(20 * time.Second):
			buf := make([]byte, 1<<20)
			t.Fatalf("groupchat does not stop:\n%s", buf[:runtime.Stack(buf, true)])
			return nil
		}
	}
	t.Cleanup(func() { require.NoError(t, s.stop()) })
	return s
}

// A person is somebody signed in.
type person struct {
	*testSite
	http *http.Client
}

func (s *testSite) login(user string) *person {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(s.t, err)
	p := &person{s, &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	resp, err := p.http.PostForm(s.base+"/login", url.Values{"user": {user}})
	require.NoError(s.t, err)
	defer resp.Body.Close()
	require.Equal(s.t, http.StatusSeeOther, resp.StatusCode)
	return p
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal(a.body, &v), "%s", a.body)
	return v
}

func do(t *testing.T, c *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := c.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, body}
}

func request(t *testing.T, method, target, contentType, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	require.NoError(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req
}

func (p *person) get(path string) answer {
	p.t.Helper()
	return do(p.t, p.http, request(p.t, "GET", p.base+path, "", ""))
}

// post sends v as JSON.
func (p *person) post(path string, v any) answer {
	p.t.Helper()
	text, err := json.Marshal(v)
	require.NoError(p.t, err)
	return do(p.t, p.http, request(p.t, "POST", p.base+path, "application/json", string(text)))
}

func (p *person) say(group, thread, text string) message {
	p.t.Helper()
	a := p.post("/groups/"+group+"/messages", map[string]string{"text": text, "thread": thread})
	require.Equal(p.t, http.StatusCreated, a.status, "%s", a.body)
	var m message
	require.NoError(p.t, json.Unmarshal(a.body, &m))
	return m
}

func (p *person) list(group string) []message {
	p.t.Helper()
	a := p.get("/groups/" + group + "/messages")
	require.Equal(p.t, http.StatusOK, a.status, "%s", a.body)
	var v struct{ Messages []message }
	require.NoError(p.t, json.Unmarshal(a.body, &v))
	return v.Messages
}

func (p *person) grants() []story {
	p.t.Helper()
	a := p.get("/grants")
	require.Equal(p.t, http.StatusOK, a.status, "%s", a.body)
	var v struct{ Grants []story }
	require.NoError(p.t, json.Unmarshal(a.body, &v))
	return v.Grants
}

// waitFor asks again and again until the condition holds.
func waitFor[T any](t *testing.T, what string, f func() (T, bool)) T {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if v, ok := f(); ok {
			return v
		}
	}
	t.Fatalf("in vain: %s", what)
	panic("unreachable")
}

// waitForMessage waits for a message that holds the text.
func (p *person) waitForMessage(group, text string) message {
	p.t.Helper()
	return waitFor(p.t, "message "+text, func() (message, bool) {
		for _, m := range p.list(group) {
			if strings.Contains(m.Text, text) {
				return m, true
			}
		}
		return message{}, false
	})
}

// A probe is an app that only these tests drive.
type probe struct {
	*testSite
	id, secret string
}

func (s *testSite) client(id, secret string) *probe { return &probe{s, id, secret} }

func (s *testSite) probe() *probe { return s.client("probe", "s3cr:t +%&-") }

func (b *probe) call(method, path, form string) answer {
	b.t.Helper()
	media := ""
	if form != "" {
		media = "application/x-www-form-urlencoded"
	}
	req := request(b.t, method, b.base+path, media, form)
	req.SetBasicAuth(url.QueryEscape(b.id), url.QueryEscape(b.secret))
	return do(b.t, http.DefaultClient, req)
}

type polled struct {
	ID    string `json:"id"`
	Code  string `json:"code"`
	Scope string `json:"scope"`
	Event struct {
		ID, Operation, Account, Domain, Text, Target string
		Data                                         map[string]string
	} `json:"event"`
}

func (b *probe) poll() []polled {
	b.t.Helper()
	a := b.call("GET", "/oauth2/grants?wait=5s", "")
	require.Equal(b.t, http.StatusOK, a.status, "%s", a.body)
	var v struct{ Grants []polled }
	require.NoError(b.t, json.Unmarshal(a.body, &v))
	return v.Grants
}

type token struct {
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope"`
	GrantID     string `json:"grant_id"`
	Uses        int    `json:"uses"`
	Domain      string `json:"domain"`
	Sub         string `json:"sub"`
	ExpiresIn   int    `json:"expires_in"`
}

func (b *probe) redeem(code string) token {
	b.t.Helper()
	a := b.call("POST", "/oauth2/token", url.Values{"grant_type": {"urn:behest:grant-type:operation"}, "code": {code}}.Encode())
	require.Equal(b.t, http.StatusOK, a.status, "%s", a.body)
	var v token
	require.NoError(b.t, json.Unmarshal(a.body, &v))
	return v
}

// one polls for the one grant that is there, and redeems it.
func (b *probe) one() token {
	b.t.Helper()
	found := b.poll()
	require.Len(b.t, found, 1)
	return b.redeem(found[0].Code)
}

// api calls as the user.
func (b *probe) api(t token, method, path, body string) answer {
	b.t.Helper()
	media := ""
	if body != "" {
		media = "application/json"
	}
	req := request(b.t, method, b.base+"/api"+path, media, body)
	req.Header.Set("Authorization", "Bearer "+t.AccessToken)
	return do(b.t, http.DefaultClient, req)
}

func (b *probe) refused(a answer, status int, reason string) {
	b.t.Helper()
	require.Equal(b.t, status, a.status, "%s", a.body)
	require.Equal(b.t, reason, a.json(b.t)["error_reason"], "%s", a.body)
}

const pinned = "apps.json"

func appsFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "apps.json")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// withTriggers is the pinned file with an app that may do everything, and these triggers.
func withTriggers(t *testing.T, triggers ...string) string {
	return appsFile(t, `{"apps": [{"id": "probe", "name": "Probe", "secret": "s3cr:t +%&-",
		"actions": ["message.read", "message.write", "member.read", "reaction.write"], "redirect_uris": ["http://127.0.0.1:9/in"]},
		{"id": "rs", "secret": "rs-secret", "introspect": true}],
		"triggers": [`+strings.Join(triggers, ",\n")+`]}`)
}

func TestTheBuiltInStory(t *testing.T) { everyStore(t, testTheBuiltInStory) }

func testTheBuiltInStory(t *testing.T, o options) {
	o.seed, o.pace = true, time.Millisecond
	s := launch(t, o)
	zhang, li := s.login("zhang-san"), s.login("li-si")

	asked := zhang.say("42", "", "@BookBot, a novel with a storm in it!")
	last := zhang.waitForMessage("42", "This one, perhaps?")
	var via []message
	for _, m := range zhang.list("42") {
		if m.Via != "" {
			via = append(via, m)
		}
	}
	require.Len(t, via, 3)
	for _, m := range via {
		require.Equal(t, "zhang-san", m.Account, "in the name of who asked")
		require.Equal(t, "bookbot", m.Via)
		require.Empty(t, m.Thread)
	}
	g := waitFor(t, "three uses", func() (story, bool) {
		list := zhang.grants()
		return list[0], list[0].Left == 2
	})
	require.Equal(t, "bookbot-mention", g.Trigger)
	require.Equal(t, asked.ID, g.Event)
	require.Equal(t, "redeemed", g.State)
	require.Equal(t, "group:42", g.Domain)
	var what []string
	for _, step := range g.Steps {
		what = append(what, step.What)
	}
	require.Subset(t, what, []string{"issued", "redeemed", "used"})
	require.Empty(t, li.grants(), "nobody sees another's")

	t.Run("a button acts for who presses it", func(t *testing.T) {
		button := last.Card.Actions[0]
		a := li.post("/groups/42/messages/"+last.ID+"/press", map[string]string{"button": button.Button, "value": button.Value})
		require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
		require.EqualValues(t, 1, a.json(t)["grants"])
		m := li.waitForMessage("42", "I have reserved “"+button.Value)
		require.Equal(t, "li-si", m.Account)
		require.Equal(t, "bookbot", m.Via)
		a = li.post("/groups/42/messages/"+last.ID+"/press", map[string]string{"button": "reserve", "value": "Something else"})
		require.Equal(t, http.StatusNotFound, a.status, "only what is on the card")
	})
	t.Run("in a thread it stays in the thread", func(t *testing.T) {
		zhang.say("42", "t1", "@bookbot something thick for the winter")
		waitFor(t, "card in the thread", func() (message, bool) {
			list := zhang.list("42")
			m := list[len(list)-1]
			return m, m.Card != nil && m.Thread == "t1"
		})
		require.Equal(t, "group:42/thread:t1", zhang.grants()[0].Domain)
	})
	t.Run("the page shows it", func(t *testing.T) {
		req := request(t, "GET", s.base+"/groups/42", "", "")
		req.Header.Set("Accept", "text/html")
		a := do(t, zhang.http, req)
		require.Equal(t, http.StatusOK, a.status)
		require.Contains(t, string(a.body), `<span class="via">via BookBot</span>`)
		require.Contains(t, string(a.body), `id="story-`+g.ID)
		require.NotContains(t, string(a.body), "bhsc_")
		require.NotContains(t, string(a.body), "bhst_")
	})
}

func TestTeaTimePollsAndTakesLinks(t *testing.T) { everyStore(t, testTeaTimePollsAndTakesLinks) }

func testTeaTimePollsAndTakesLinks(t *testing.T, o options) {
	o.seed, o.pace = true, time.Millisecond
	s := launch(t, o)
	zhang, li := s.login("zhang-san"), s.login("li-si")
	zhang.say("42", "t2", "/tea 17:30")
	m := zhang.waitForMessage("42", "kettle")
	require.Equal(t, "teatime", m.Via)
	require.Equal(t, "t2", m.Thread)
	require.Equal(t, "Tea at 17:30", m.Card.Title)

	open := func(p *person, link string) answer {
		return p.post("/groups/42/messages/"+m.ID+"/open", map[string]string{"link": link})
	}
	a := open(li, m.Card.Actions[0].Link)
	require.Equal(t, http.StatusSeeOther, a.status, "%s", a.body)
	to, err := url.Parse(a.header.Get("Location"))
	require.NoError(t, err)
	require.Equal(t, "/tea", to.Path)
	require.Equal(t, s.base, to.Query().Get("iss"))
	require.NotEmpty(t, to.Query().Get("code"))
	require.Equal(t, "no-store", a.header.Get("Cache-Control"))

	browser := &http.Client{} // follows, and has nobody's cookie
	a = do(t, browser, request(t, "GET", to.String(), "", ""))
	require.Equal(t, http.StatusOK, a.status)
	require.Contains(t, string(a.body), "Noted")
	said := li.waitForMessage("42", "I am coming to tea. That makes 2 of 4.")
	require.Equal(t, "li-si", said.Account)
	require.Equal(t, "teatime", said.Via)
	require.Empty(t, said.Thread, "at: granted for the group")

	a = do(t, browser, request(t, "GET", to.String(), "", ""))
	require.Contains(t, string(a.body), "The chat refused", "a code works once")
	a = do(t, browser, request(t, "GET", to.Scheme+"://"+to.Host+to.Path+"?iss="+url.QueryEscape(s.base), "", ""))
	require.Contains(t, string(a.body), "without a code")
	require.Equal(t, http.StatusNotFound, open(li, "https://elsewhere.example/").status, "only links of the message")
}

func TestThePinnedFile(t *testing.T) { everyStore(t, testThePinnedFile) }

func testThePinnedFile(t *testing.T, o options) {
	path := filepath.Join(t.TempDir(), "info.json")
	o.apps, o.info = pinned, path
	s := launch(t, o)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	stat, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), stat.Mode().Perm())
	var about info
	require.NoError(t, json.Unmarshal(text, &about))
	require.Equal(t, s.base, about.Issuer)
	require.Equal(t, s.base+"/api", about.APIBase)
	require.Len(t, about.Apps, 1)
	require.Equal(t, "probe", about.Apps[0].ID)
	require.Equal(t, "s3cr:t +%&-", about.Apps[0].Secret)
	require.True(t, strings.HasPrefix(about.Apps[0].WebhookSecret, "whsec_"))
	require.True(t, strings.HasPrefix(about.Apps[0].WebhookPublicKey, "whpk_"))
	require.Equal(t, "rs", about.ResourceServer.ID)
	require.Equal(t, "rs-secret", about.ResourceServer.Secret)

	zhang, probe := s.login("zhang-san"), s.probe()
	require.Empty(t, zhang.list("42"), "with -apps the groups begin empty")
	m := zhang.say("42", "", "@probe hello")
	found := probe.poll()
	require.Len(t, found, 1)
	require.Equal(t, "group:42/message.write", found[0].Scope)
	require.Equal(t, m.ID, found[0].Event.ID)
	require.Equal(t, "mention", found[0].Event.Operation)
	require.NotEqual(t, "zhang-san", found[0].Event.Account, "apps know users by other names")
	tok := probe.redeem(found[0].Code)
	require.Equal(t, 3, tok.Uses)
	require.Equal(t, "group:42", tok.Domain)
	require.Equal(t, found[0].Event.Account, tok.Sub)
	require.Equal(t, found[0].ID, tok.GrantID)

	a := probe.call("POST", "/oauth2/token", url.Values{"grant_type": {"urn:behest:grant-type:operation"}, "code": {found[0].Code}}.Encode())
	require.Equal(t, http.StatusBadRequest, a.status)
	require.Equal(t, "invalid_grant", a.json(t)["error"])

	probe.refused(probe.api(tok, "POST", "/groups/7/messages", `{"text":"elsewhere"}`), http.StatusForbidden, "wrong_domain")
	probe.refused(probe.api(tok, "POST", "/groups/999/messages", `{"text":"nowhere"}`), http.StatusForbidden, "wrong_domain")
	probe.refused(probe.api(tok, "GET", "/groups/42/members", ""), http.StatusForbidden, "wrong_action")
	probe.refused(probe.api(tok, "GET", "/groups/42/messages", ""), http.StatusForbidden, "wrong_action")
	for i := range 3 {
		a := probe.api(tok, "POST", "/groups/42/messages", `{"text":"as you asked, @probe","thread":"`+[]string{"", "t1", "new"}[i]+`"}`)
		require.Equal(t, http.StatusCreated, a.status, "%s", a.body)
		v := a.json(t)
		require.Equal(t, tok.Sub, v["account"])
		require.Equal(t, "probe", v["via"])
	}
	probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"once more"}`), http.StatusUnauthorized, "used_up")
	list := zhang.list("42")
	require.Len(t, list, 4)
	require.Equal(t, "zhang-san", list[3].Account)
	require.Equal(t, "new", list[3].Thread)
	require.Len(t, zhang.grants(), 1, "what is done with a token triggers nothing")

	rs := s.client("rs", "rs-secret")
	v := rs.call("POST", "/oauth2/introspect", url.Values{"token": {tok.AccessToken}}.Encode()).json(t)
	require.Equal(t, false, v["active"])
}

// A resource server in another process, which has nothing of groupchat's but its address, guards an API of its own: it spends through
// POST /oauth2/use, and verifies the tokens of stateless triggers alone.
func TestResourceServerElsewhere(t *testing.T) {
	path := appsFile(t, `{"apps": [{"id": "probe", "secret": "s3cr:t +%&-", "actions": ["message.write"], "real_names": true}, {"id": "rs", "secret": "rs-secret", "introspect": true}],
		"triggers": [{"id": "counted", "app": "probe", "on": "mention", "in": "group:*", "allow": ["message.write"], "uses": 2},
			{"id": "stateless", "app": "probe", "on": "command", "in": "group:*", "allow": ["message.write"], "uses": -1, "for": "2m", "stateless": true, "match": {"command": "/free"}}],
		"jwt_audience": "https://files.example"}`)
	s := launch(t, options{apps: path})
	probe, zhang := s.probe(), s.login("zhang-san")
	metadata := do(t, http.DefaultClient, request(t, "GET", s.base+"/.well-known/oauth-protected-resource", "", "")).json(t)
	require.Equal(t, map[string]any{"resource": s.base, "authorization_servers": []any{s.base}, "bearer_methods_supported": []any{"header"},
		"dpop_signing_alg_values_supported": []any{"EdDSA", "Ed25519", "ES256", "RS256"}}, metadata)
	remote, err := authz.NewRemote(authz.RemoteConfig{Issuer: s.base, ClientID: "rs", Secret: grant.NewSecret("rs-secret"), Resource: "https://files.example", Now: time.Now})
	require.NoError(t, err)
	use := func(token string) error {
		d, err := remote.Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
		if err == nil {
			require.Equal(t, "zhang-san", d.Account)
			require.Equal(t, "probe", d.App)
		}
		return err
	}
	redeem := func(text string) string {
		zhang.say("42", "", text)
		found := probe.poll()
		require.Len(t, found, 1)
		return probe.redeem(found[0].Code).AccessToken
	}
	counted := redeem("@probe hello")
	require.NoError(t, use(counted))
	require.NoError(t, use(counted))
	require.ErrorIs(t, use(counted), grant.ErrUsedUp)

	free := redeem("/free")
	for range 5 {
		require.NoError(t, use(free))
	}
	tok := token{AccessToken: free}
	require.Equal(t, http.StatusUnauthorized, probe.api(tok, "POST", "/groups/42/messages", `{"text":"not here"}`).status, "it is for another audience")
}

// Webhooks on this machine are allowed when the file names them, and are signed with the file's secret as well as with the server's own key.
func TestPushToAFilesWebhook(t *testing.T) {
	type delivery struct {
		header http.Header
		body   []byte
	}
	got := make(chan delivery, 1)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- delivery{r.Header, body}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer hook.Close()
	const secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	path := filepath.Join(t.TempDir(), "info.json")
	s := launch(t, options{info: path, apps: appsFile(t, `{"apps": [{"id": "probe", "secret": "s3cr:t +%&-", "actions": ["message.write"], "webhook": "`+hook.URL+`/hook", "webhook_secret": "`+secret+`"}],
		"triggers": [{"app": "probe", "on": "mention", "in": "group:*", "allow": ["message.write"]}]}`)})
	zhang := s.login("zhang-san")
	m := zhang.say("42", "", "@probe hello")
	d := <-got
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var about info
	require.NoError(t, json.Unmarshal(text, &about))
	require.Equal(t, secret, about.Apps[0].WebhookSecret)
	require.NotEmpty(t, about.ResourceServer.Secret, "made, since the file has none")
	for _, key := range []string{secret, about.Apps[0].WebhookPublicKey} {
		k, err := webhook.ParseKey(key)
		require.NoError(t, err)
		_, err = webhook.Verify(d.header, d.body, time.Now(), k)
		require.NoError(t, err)
	}
	var push struct {
		Type string
		Data polled
	}
	require.NoError(t, json.Unmarshal(d.body, &push))
	require.Equal(t, "grant.issued", push.Type)
	require.Equal(t, m.ID, push.Data.Event.ID)
	require.Equal(t, 5, s.probe().redeem(push.Data.Code).Uses)
	waitFor(t, "the delivery in the panel", func() (bool, bool) {
		for _, step := range zhang.grants()[0].Steps {
			if step.What == "delivered" {
				return true, true
			}
		}
		return false, false
	})
}

func TestWithoutAGrant(t *testing.T) {
	s := launch(t, options{apps: pinned})
	zhang := s.login("zhang-san")
	a := zhang.post("/groups/42/try", struct{}{})
	require.Equal(t, http.StatusOK, a.status, "%s", a.body)
	var v struct{ Attempts []attempt }
	require.NoError(t, json.Unmarshal(a.body, &v))
	require.Len(t, v.Attempts, 3)
	for _, one := range v.Attempts {
		require.Equal(t, http.StatusUnauthorized, one.Status, one.With)
		require.Contains(t, one.Challenge, "Bearer")
	}
	require.Empty(t, zhang.list("42"))
	// The cookie of who is signed in is no way in either.
	a = zhang.post("/api/groups/42/messages", map[string]string{"text": "with a cookie"})
	require.Equal(t, http.StatusUnauthorized, a.status)
}

func TestATokenStaysWhereItWasGranted(t *testing.T) {
	mention := func(extra string) string {
		return `{"id":"t","app":"probe","on":"mention","in":"group:*","allow":["message.write","message.read","reaction.write","member.read"],"uses":50` + extra + `}`
	}
	for _, c := range []struct {
		name, extra, said string
		domain            string
		elsewhere, group  int // the status in another thread, and in the group itself
	}{
		{"said in the group", "", "", "group:42", 201, 201},
		{"said in a thread", "", "t1", "group:42/thread:t1", 403, 403},
		{"said in a thread, granted for the group", `,"at":"group"`, "t1", "group:42", 201, 201},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := launch(t, options{apps: withTriggers(t, mention(c.extra))})
			zhang, probe := s.login("zhang-san"), s.probe()
			inT1, inT2, inGroup := zhang.say("42", "t1", "in t1"), zhang.say("42", "t2", "in t2"), zhang.say("42", "", "in the group")
			zhang.say("42", c.said, "@probe please")
			tok := probe.one()
			require.Equal(t, c.domain, tok.Domain)
			status := func(method, path, body string) int {
				a := probe.api(tok, method, path, body)
				if a.status == http.StatusForbidden {
					probe.refused(a, http.StatusForbidden, "wrong_domain")
				}
				return a.status
			}
			get := func(want int) int {
				if want == 201 {
					return 200
				}
				return want
			}
			require.Equal(t, 201, status("POST", "/groups/42/messages", `{"text":"x","thread":"t1"}`))
			require.Equal(t, c.elsewhere, status("POST", "/groups/42/messages", `{"text":"x","thread":"t2"}`))
			require.Equal(t, c.elsewhere, status("POST", "/groups/42/messages", `{"text":"x","thread":"brand-new"}`))
			require.Equal(t, c.group, status("POST", "/groups/42/messages", `{"text":"x"}`))
			require.Equal(t, c.group, status("POST", "/groups/42/messages", `{"text":"x","thread":""}`))
			require.Equal(t, c.group, status("POST", "/groups/42/messages", `{"text":"x","thread":"t1","thread":null,"thread":""}`), "the last one is what counts, to all who read it")
			require.Equal(t, 403, status("POST", "/groups/7/messages", `{"text":"x","thread":"t1"}`))

			require.Equal(t, 201, status("POST", "/groups/42/reactions", `{"message":"`+inT1.ID+`","emoji":"♥"}`))
			require.Equal(t, c.elsewhere, status("POST", "/groups/42/reactions", `{"message":"`+inT2.ID+`","emoji":"♥"}`))
			require.Equal(t, c.group, status("POST", "/groups/42/reactions", `{"message":"`+inGroup.ID+`","emoji":"♥"}`))
			require.Equal(t, 404, status("POST", "/groups/7/reactions", `{"message":"`+inT1.ID+`","emoji":"♥"}`))

			require.Equal(t, 200, status("GET", "/groups/42/messages?thread=t1", ""))
			require.Equal(t, get(c.elsewhere), status("GET", "/groups/42/messages?thread=t2", ""))
			require.Equal(t, get(c.group), status("GET", "/groups/42/messages", ""))
			require.Equal(t, get(c.group), status("GET", "/groups/42/members", ""))
			for _, m := range zhang.list("42") {
				if m.Via != "" && c.domain != "group:42" {
					require.Equal(t, "t1", m.Thread)
				}
			}
		})
	}
}

func TestNamesForApps(t *testing.T) { everyStore(t, testNamesForApps) }

func testNamesForApps(t *testing.T, o options) {
	o.apps = withTriggers(t, `{"app":"probe","on":"mention","in":"group:*","allow":["message.read","member.read","reaction.write"],"uses":9}`)
	s := launch(t, o)
	zhang, li, probe := s.login("zhang-san"), s.login("li-si"), s.probe()
	m := li.say("42", "", "hello")
	li.post("/groups/42/reactions", map[string]string{"message": m.ID, "emoji": "♥"})
	zhang.say("42", "", "@probe who is here?")
	tok := probe.one()
	for _, path := range []string{"/groups/42/messages", "/groups/42/members"} {
		a := probe.api(tok, "GET", path, "")
		require.Equal(t, http.StatusOK, a.status)
		require.NotContains(t, string(a.body), "li-si")
		require.NotContains(t, string(a.body), "zhang-san")
		require.Contains(t, string(a.body), tok.Sub)
	}
}

func TestLeavingTakesThePowerAlong(t *testing.T) {
	s := launch(t, options{apps: pinned})
	li, probe := s.login("li-si"), s.probe()
	li.say("42", "", "@probe hello")
	tok := probe.one()
	require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"one"}`).status)
	require.Equal(t, 200, li.post("/groups/42/leave", struct{}{}).status)
	probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"two"}`), 403, "rights_changed")
	require.Equal(t, 403, li.get("/groups/42/messages").status)
	require.Equal(t, 403, li.post("/groups/42/messages", map[string]string{"text": "still here"}).status)
	require.Equal(t, 200, li.post("/groups/42/join", struct{}{}).status)
	require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"back"}`).status, "no use was spent")
	waitFor(t, "the refusal", func() (bool, bool) {
		for _, step := range li.grants()[0].Steps {
			if step.What == "refused" && step.Reason == "rights_changed" {
				return true, true
			}
		}
		return false, false
	})
}

func TestTheMutedAreMutedThroughAppsToo(t *testing.T) {
	everyStore(t, testTheMutedAreMutedThroughAppsToo)
}

func testTheMutedAreMutedThroughAppsToo(t *testing.T, o options) {
	o.apps = pinned
	s := launch(t, o)
	zhang, li, probe := s.login("zhang-san"), s.login("li-si"), s.probe()
	li.say("42", "", "@probe hello")
	tok := probe.one()
	require.Equal(t, 403, li.post("/groups/42/mute", map[string]any{"user": "zhang-san", "muted": true}).status, "the owner alone mutes")
	require.Equal(t, 200, zhang.post("/groups/42/mute", map[string]any{"user": "li-si", "muted": true}).status)
	probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"x"}`), 403, "rights_changed")
	li.post("/groups/42/leave", struct{}{})
	li.post("/groups/42/join", struct{}{})
	require.Equal(t, 403, li.post("/groups/42/messages", map[string]string{"text": "x"}).status, "leaving does not unmute")
	require.Equal(t, 200, zhang.post("/groups/42/mute", map[string]any{"user": "li-si", "muted": false}).status)
	require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"x"}`).status)
}

func TestRevokeWhileTheAppIsAtWork(t *testing.T) {
	s := launch(t, options{seed: true, pace: 400 * time.Millisecond})
	zhang, li := s.login("zhang-san"), s.login("li-si")
	zhang.say("42", "", "@bookbot a storm")
	zhang.waitForMessage("42", "shelves searched")
	id := zhang.grants()[0].ID
	require.Equal(t, 404, li.post("/grants/"+id+"/revoke", struct{}{}).status, "not another's")
	require.Equal(t, 200, zhang.post("/grants/"+id+"/revoke", struct{}{}).status)
	g := waitFor(t, "the refusal", func() (story, bool) {
		g := zhang.grants()[0]
		for _, step := range g.Steps {
			if step.What == "refused" && step.Reason == "revoked" {
				return g, true
			}
		}
		return g, false
	})
	require.Equal(t, "revoked", g.State)
	for _, m := range zhang.list("42") {
		require.Nil(t, m.Card, "the work was not finished")
	}
	t.Run("and everything at once", func(t *testing.T) {
		zhang.say("42", "", "@bookbot a storm")
		zhang.waitForMessage("42", "shelves searched")
		require.Equal(t, 200, zhang.post("/grants/revoke", struct{}{}).status)
		require.Equal(t, "revoked", zhang.grants()[0].State)
	})
}

func TestAnAppAsksAgain(t *testing.T) {
	s := launch(t, options{apps: pinned})
	zhang, probe := s.login("zhang-san"), s.probe()
	zhang.say("42", "", "@probe and tomorrow?")
	tok := probe.one()
	post := func(text string) answer {
		req := request(t, "POST", s.base+"/api/groups/42/messages", "application/json", `{"text":"`+text+`"}`)
		req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
		req.Header.Set("Idempotency-Key", `"tomorrow-1"`)
		return do(t, http.DefaultClient, req)
	}
	first := post("Lord Jim.")
	require.Equal(t, http.StatusCreated, first.status)
	for range 3 {
		again := post("Lord Jim.")
		require.Equal(t, http.StatusCreated, again.status)
		require.Equal(t, string(first.body), string(again.body))
		require.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
	}
	probe.refused(post("Nostromo."), http.StatusUnprocessableEntity, "key_reused")
	require.Len(t, zhang.list("42"), 2, "the question, and one answer")
	for range 2 {
		require.Equal(t, http.StatusCreated, probe.api(tok, "POST", "/groups/42/messages", `{"text":"more"}`).status)
	}
	require.Equal(t, http.StatusCreated, post("Lord Jim.").status, "also when the token is used up")
	probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"more"}`), http.StatusUnauthorized, "used_up")
}

// An app whose connection is lost, at whatever moment, asks again and is answered: one message and one use for each key.
func TestAnAppLosesItsConnection(t *testing.T) { everyStore(t, testAnAppLosesItsConnection) }

func testAnAppLosesItsConnection(t *testing.T, o options) {
	o.apps = pinned
	s := launch(t, o)
	zhang, probe := s.login("zhang-san"), s.probe()
	const tokens, uses = 8, 3
	var tok token
	for i := range tokens * uses {
		if i%uses == 0 {
			zhang.say("42", "", "@probe again")
			tok = probe.one()
		}
		post := func(ctx context.Context) *http.Request {
			req := request(t, "POST", s.base+"/api/groups/42/messages", "application/json", fmt.Sprintf(`{"text":"number %d"}`, i)).WithContext(ctx)
			req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
			req.Header.Set("Idempotency-Key", fmt.Sprint("key-", i))
			return req
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*250*time.Microsecond)
		if resp, err := http.DefaultClient.Do(post(ctx)); err == nil {
			_ = resp.Body.Close()
		}
		cancel()
		var again answer
		require.Eventually(t, func() bool {
			again = do(t, http.DefaultClient, post(t.Context()))
			return again.status != http.StatusConflict // in flight
		}, 10*time.Second, 5*time.Millisecond)
		require.Equal(t, http.StatusCreated, again.status, "%s", again.body)
	}
	require.Len(t, zhang.list("42"), tokens+tokens*uses)
}

func TestATokenExpires(t *testing.T) {
	s := launch(t, options{apps: pinned})
	zhang, probe := s.login("zhang-san"), s.probe()
	zhang.say("42", "", "@probe hello")
	tok := probe.one()
	s.skew.Store(int64(10*time.Minute + time.Second))
	probe.refused(probe.api(tok, "POST", "/groups/42/messages", `{"text":"x"}`), 401, "expired")
	require.Equal(t, "expired", zhang.grants()[0].State)
}

func TestConsent(t *testing.T) { everyStore(t, testConsent) }

func testConsent(t *testing.T, o options) {
	o.seed, o.pace = true, time.Millisecond
	s := launch(t, o)
	wang, li := s.login("wang-wu"), s.login("li-si")
	wang.say("42", "", "When is the next book club?")
	g := wang.grants()[0]
	require.Equal(t, "pending", g.State)
	require.Equal(t, 404, li.post("/grants/"+g.ID+"/decide", map[string]bool{"allow": true}).status, "who decides is the account")
	require.Equal(t, 200, wang.post("/grants/"+g.ID+"/decide", map[string]bool{"allow": true}).status)
	require.Equal(t, 409, wang.post("/grants/"+g.ID+"/decide", map[string]bool{"allow": false}).status)
	require.Equal(t, "wang-wu", wang.waitForMessage("42", "on Thursday at seven").Account)

	li.say("42", "", "book club?")
	g = li.grants()[0]
	require.Equal(t, 200, li.post("/grants/"+g.ID+"/decide", map[string]bool{"allow": false}).status)
	require.Equal(t, "denied", li.grants()[0].State)
	li.say("42", "", "book club!")
	require.Len(t, li.grants(), 1, "no is remembered")
}

// Every operation that this server has reaches the triggers of any file.
func TestOperations(t *testing.T) { everyStore(t, testOperations) }

func testOperations(t *testing.T, o options) {
	trigger := func(on, extra string) string {
		return `{"id":"` + on + `","app":"probe","on":"` + on + `","in":"group:*","allow":["message.write"],"consent":"implied","deliver":"poll"` + extra + `}`
	}
	o.apps = withTriggers(t,
		trigger("mention", ""), trigger("command", `,"match":{"command":"/book"}`), trigger("message.post", `,"match":{"keywords":["library"]}`),
		trigger("member.join", ""), trigger("reaction.add", `,"match":{"target":"♥"}`), trigger("button.press", `,"match":{"target":"go"}`),
		trigger("link.open", `,"match":{"link_prefix":"https://probe.example/x/"}`))
	s := launch(t, o)
	zhang, probe := s.login("zhang-san"), s.probe()
	got := func(operation string) polled {
		t.Helper()
		found := probe.poll()
		require.Len(t, found, 1)
		require.Equal(t, operation, found[0].Event.Operation)
		return found[0]
	}
	m := zhang.say("42", "t1", "@probe hi")
	g := got("mention")
	require.Equal(t, "group:42/thread:t1", g.Event.Domain)
	tok := probe.redeem(g.Code)
	a := probe.api(tok, "POST", "/groups/42/messages", `{"text":"press","thread":"t1","card":{"title":"A card","actions":[{"label":"Go","button":"go","value":"7"},{"label":"See","link":"https://probe.example/x/1"}]}}`)
	require.Equal(t, 201, a.status, "%s", a.body)
	posted := a.json(t)["id"].(string)

	zhang.say("42", "", "/book a table")
	g = got("command")
	require.Equal(t, "/book", g.Event.Target)
	require.Equal(t, "/book a table", g.Event.Text)
	zhang.say("42", "", "off to the Library")
	got("message.post")
	require.Equal(t, 201, zhang.post("/groups/42/reactions", map[string]string{"message": m.ID, "emoji": "♥"}).status)
	g = got("reaction.add")
	require.Equal(t, m.ID, g.Event.Data["message"])
	require.Equal(t, "group:42/thread:t1", g.Event.Domain)
	require.Equal(t, 202, zhang.post("/groups/42/messages/"+posted+"/press", map[string]string{"button": "go", "value": "7"}).status)
	g = got("button.press")
	require.Equal(t, "7", g.Event.Data["value"])
	a = zhang.post("/groups/42/messages/"+posted+"/open", map[string]string{"link": "https://probe.example/x/1"})
	require.Equal(t, 303, a.status)
	require.Equal(t, "https://probe.example/x/1", a.header.Get("Location"), "polled, so the link carries nothing")
	got("link.open")
	zhang.post("/groups/42/leave", struct{}{})
	zhang.post("/groups/42/join", struct{}{})
	got("member.join")
	zhang.post("/groups/42/join", struct{}{})
	require.Empty(t, probe.call("GET", "/oauth2/grants", "").json(t)["grants"], "was there already")
	// A link of one's own, in a text.
	link := zhang.say("42", "", "look: https://probe.example/x/2, it is good")
	require.Equal(t, 303, zhang.post("/groups/42/messages/"+link.ID+"/open", map[string]string{"link": "https://probe.example/x/2"}).status)
	require.Equal(t, "https://probe.example/x/2", got("link.open").Event.Target)
}

func TestBadInputOfPeople(t *testing.T) { everyStore(t, testBadInputOfPeople) }

func testBadInputOfPeople(t *testing.T, o options) {
	o.apps = pinned
	s := launch(t, o)
	zhang, wang := s.login("zhang-san"), s.login("wang-wu")
	m := zhang.say("42", "", "hello")
	const j, f = "application/json", "application/x-www-form-urlencoded"
	stranger := &person{s, &http.Client{}}
	for _, c := range []struct {
		name              string
		who               *person
		method, path      string
		contentType, body string
		status            int
	}{
		{"nobody", stranger, "GET", "/groups/42/messages", "", "", 401},
		{"nobody posts", stranger, "POST", "/groups/42/messages", j, `{"text":"x"}`, 401},
		{"nobody listens", stranger, "GET", "/events", "", "", 401},
		{"unknown user", stranger, "POST", "/login", f, "user=nobody", 422},
		{"no user", stranger, "POST", "/login", f, "", 422},
		{"login of another type", stranger, "POST", "/login", "text/plain", "user=zhang-san", 415},
		{"not a member", wang, "GET", "/groups/7/messages", "", "", 403},
		{"not a member posts", wang, "POST", "/groups/7/messages", j, `{"text":"x"}`, 403},
		{"not a member leaves", wang, "POST", "/groups/7/leave", "", "", 403},
		{"no such group", zhang, "GET", "/groups/999/messages", "", "", 404},
		{"no such group to post in", zhang, "POST", "/groups/999/messages", j, `{"text":"x"}`, 404},
		{"no such group to join", zhang, "POST", "/groups/999/join", "", "", 404},
		{"odd group", zhang, "POST", "/groups/%2F%00/messages", j, `{"text":"x"}`, 404},
		{"empty text", zhang, "POST", "/groups/42/messages", j, `{"text":""}`, 422},
		{"blank text", zhang, "POST", "/groups/42/messages", j, `{"text":" \n "}`, 422},
		{"no text", zhang, "POST", "/groups/42/messages", j, `{}`, 422},
		{"long text", zhang, "POST", "/groups/42/messages", j, `{"text":"` + strings.Repeat("x", maxText+1) + `"}`, 422},
		{"large body", zhang, "POST", "/groups/42/messages", j, `{"text":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"NUL", zhang, "POST", "/groups/42/messages", j, `{"text":"a\u0000b"}`, 422},
		{"not UTF-8", zhang, "POST", "/groups/42/messages", j, "{\"text\":\"\xff\xfe\"}", 400},
		{"not JSON", zhang, "POST", "/groups/42/messages", j, `{"text":`, 400},
		{"no body", zhang, "POST", "/groups/42/messages", j, ``, 400},
		{"a list", zhang, "POST", "/groups/42/messages", j, `[]`, 400},
		{"a number", zhang, "POST", "/groups/42/messages", j, `{"text":7}`, 400},
		{"another field", zhang, "POST", "/groups/42/messages", j, `{"text":"x","via":"bookbot"}`, 400},
		{"two values", zhang, "POST", "/groups/42/messages", j, `{"text":"x"} {}`, 400},
		{"deep", zhang, "POST", "/groups/42/messages", j, strings.Repeat("[", 20_000), 400},
		{"no type", zhang, "POST", "/groups/42/messages", "", `{"text":"x"}`, 415},
		{"plain text", zhang, "POST", "/groups/42/messages", "text/plain", `{"text":"x"}`, 415},
		{"odd type", zhang, "POST", "/groups/42/messages", ";;;", `{"text":"x"}`, 415},
		{"odd thread", zhang, "POST", "/groups/42/messages", j, `{"text":"x","thread":"a/b"}`, 422},
		{"long thread", zhang, "POST", "/groups/42/messages", j, `{"text":"x","thread":"` + strings.Repeat("t", 65) + `"}`, 422},
		{"bad form", zhang, "POST", "/groups/42/messages", f, `text=%zz`, 400},
		{"form not UTF-8", zhang, "POST", "/groups/42/messages", f, `text=%ff`, 400},
		{"no such message", zhang, "POST", "/groups/42/messages/m999/press", j, `{"button":"x"}`, 404},
		{"press on NUL", zhang, "POST", "/groups/42/messages/m1%00/press", j, `{"button":"x"}`, 404},
		{"press on what is not UTF-8", zhang, "POST", "/groups/42/messages/%ff/press", j, `{"button":"x"}`, 404},
		{"open NUL", zhang, "POST", "/groups/42/messages/%00/open", j, `{"link":"https://a.example/"}`, 404},
		{"open what is not UTF-8", zhang, "POST", "/groups/42/messages/m1%ED%A0%80/open", j, `{"link":"https://a.example/"}`, 404},
		{"no card", zhang, "POST", "/groups/42/messages/" + m.ID + "/press", j, `{"button":"x"}`, 404},
		{"empty button", zhang, "POST", "/groups/42/messages/" + m.ID + "/press", j, `{}`, 404},
		{"no such link", zhang, "POST", "/groups/42/messages/" + m.ID + "/open", j, `{"link":"https://evil.example/"}`, 404},
		{"reaction to nothing", zhang, "POST", "/groups/42/reactions", j, `{"message":"m999","emoji":"x"}`, 404},
		{"reaction to NUL", zhang, "POST", "/groups/42/reactions", j, `{"message":"m1\u0000","emoji":"x"}`, 404},
		{"reaction with nothing", zhang, "POST", "/groups/42/reactions", j, `{"message":"` + m.ID + `","emoji":""}`, 422},
		{"reaction with a novel", zhang, "POST", "/groups/42/reactions", j, `{"message":"` + m.ID + `","emoji":"` + strings.Repeat("x", 33) + `"}`, 422},
		{"no such grant", zhang, "POST", "/grants/nope/revoke", "", "", 404},
		{"a grant that is NUL", zhang, "POST", "/grants/%00/revoke", "", "", 404},
		{"a grant that is not UTF-8", zhang, "POST", "/grants/%ff/revoke", "", "", 404},
		{"no such grant to decide", zhang, "POST", "/grants/nope/decide", j, `{"allow":true}`, 404},
		{"odd decision", zhang, "POST", "/grants/nope/decide", j, `{"allow":"yes"}`, 400},
		{"odd revision", zhang, "GET", "/events?since=x", "", "", 400},
		{"mute nobody", zhang, "POST", "/groups/42/mute", j, `{"user":"nobody","muted":true}`, 404},
		{"mute NUL", zhang, "POST", "/groups/42/mute", j, `{"user":"li-si\u0000","muted":true}`, 404},
		{"nowhere", zhang, "GET", "/nowhere", "", "", 404},
		{"a file that is not UTF-8", stranger, "GET", "/static/%ff", "", "", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := do(t, c.who.http, request(t, c.method, s.base+c.path, c.contentType, c.body))
			require.Equal(t, c.status, a.status, "%s", a.body)
			v := a.json(t)
			require.NotEmpty(t, v["error"])
			require.NotEmpty(t, v["error_description"])
		})
	}
	require.Len(t, zhang.list("42"), 1, "nothing half-done")
}

func TestBadInputOfApps(t *testing.T) { everyStore(t, testBadInputOfApps) }

func testBadInputOfApps(t *testing.T, o options) {
	o.apps = withTriggers(t, `{"app":"probe","on":"mention","in":"group:*","allow":["message.write","message.read","reaction.write"],"uses":2}`)
	s := launch(t, o)
	zhang, probe := s.login("zhang-san"), s.probe()
	zhang.say("42", "", "@probe hi")
	tok := probe.one()
	for _, c := range []struct {
		name, method, path, contentType, body string
		status                                int
	}{
		{"empty text", "POST", "/groups/42/messages", "application/json", `{"text":""}`, 400},
		{"not JSON", "POST", "/groups/42/messages", "application/json", `{`, 400},
		{"another field", "POST", "/groups/42/messages", "application/json", `{"text":"x","account":"li-si"}`, 400},
		{"too large", "POST", "/groups/42/messages", "application/json", `{"text":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"not UTF-8", "POST", "/groups/42/messages", "application/json", "{\"text\":\"\xff\"}", 400},
		{"plain text", "POST", "/groups/42/messages", "text/plain", `{"text":"x"}`, 415},
		{"a form", "POST", "/groups/42/messages", "application/x-www-form-urlencoded", `text=x`, 415},
		{"odd thread", "POST", "/groups/42/messages", "application/json", `{"text":"x","thread":"../7"}`, 400},
		{"a script for a link", "POST", "/groups/42/messages", "application/json", `{"text":"x","card":{"title":"x","actions":[{"label":"x","link":"javascript:alert(1)"}]}}`, 400},
		{"a card of nothing", "POST", "/groups/42/messages", "application/json", `{"text":"x","card":{}}`, 400},
		{"odd thread to read", "GET", "/groups/42/messages?thread=a%2Fb", "", "", 400},
		{"reaction to nothing", "POST", "/groups/42/reactions", "application/json", `{"message":"m999","emoji":"x"}`, 404},
		{"reaction to NUL", "POST", "/groups/42/reactions", "application/json", `{"message":"m1\u0000","emoji":"x"}`, 404},
		{"reaction with nothing", "POST", "/groups/42/reactions", "application/json", `{"message":"m1","emoji":""}`, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := request(t, c.method, s.base+"/api"+c.path, c.contentType, c.body)
			req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
			a := do(t, http.DefaultClient, req)
			require.Equal(t, c.status, a.status, "%s", a.body)
			require.NotEmpty(t, a.json(t)["error"])
		})
	}
	require.Equal(t, 2, zhang.grants()[0].Left, "a malformed request spends nothing")
	require.Equal(t, 201, probe.api(tok, "POST", "/groups/42/messages", `{"text":"well"}`).status)
}

func TestOtherSitesAndNames(t *testing.T) {
	s := launch(t, options{apps: pinned})
	zhang := s.login("zhang-san")
	post := func(change func(*http.Request)) int {
		req := request(t, "POST", s.base+"/groups/42/messages", "application/json", `{"text":"x"}`)
		change(req)
		return do(t, zhang.http, req).status
	}
	require.Equal(t, 201, post(func(*http.Request) {}))
	require.Equal(t, 201, post(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }))
	require.Equal(t, 403, post(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }))
	require.Equal(t, 403, post(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }), "another port is another site")
	require.Equal(t, 403, post(func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }))
	require.Equal(t, 421, post(func(r *http.Request) { r.Host = "rebound.example" }))
	resp, err := http.PostForm(s.base+"/login", url.Values{"user": {"zhang-san"}})
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Contains(t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'")
	cookie := do(t, zhang.http, request(t, "POST", s.base+"/login", "application/x-www-form-urlencoded", "user=zhang-san")).header.Get("Set-Cookie")
	require.Contains(t, cookie, "HttpOnly")
	require.Contains(t, cookie, "SameSite=Lax")
	require.Equal(t, 303, do(t, zhang.http, request(t, "POST", s.base+"/logout", "", "")).status)
	require.Equal(t, 401, zhang.get("/groups/42/messages").status)
}

func TestPagesWithoutScript(t *testing.T) { everyStore(t, testPagesWithoutScript) }

func testPagesWithoutScript(t *testing.T, o options) {
	o.seed, o.pace = true, time.Millisecond
	s := launch(t, o)
	zhang := s.login("zhang-san")
	page := func(method, path, form string) answer {
		media := ""
		if method == "POST" {
			media = "application/x-www-form-urlencoded"
		}
		req := request(t, method, s.base+path, media, form)
		req.Header.Set("Accept", "text/html")
		return do(t, zhang.http, req)
	}
	require.Equal(t, 303, page("GET", "/", "").status)
	a := page("POST", "/groups/42/messages?thread=t1", url.Values{"text": {"<script>alert(1)</script> @bookbot https://x.example/"}, "thread": {"t1"}}.Encode())
	require.Equal(t, 303, a.status)
	require.Equal(t, "/groups/42?thread=t1", a.header.Get("Location"))
	a = page("GET", "/groups/42?thread=t1", "")
	require.Equal(t, 200, a.status)
	require.NotContains(t, string(a.body), "<script>alert")
	require.Contains(t, string(a.body), "<mark>@bookbot</mark>")
	require.Contains(t, string(a.body), `<a href="https://x.example/" rel=`)
	require.Equal(t, 404, page("GET", "/groups/42?thread=nope", "").status)
	require.Equal(t, 422, page("POST", "/groups/42/messages", "text=").status)
	require.Equal(t, 303, page("POST", "/groups/42/leave", "").status)
	a = page("GET", "/groups/42", "")
	require.Equal(t, 403, a.status)
	require.Contains(t, string(a.body), "Join Reading circle")
	require.Equal(t, 303, page("POST", "/logout", "").status)
	require.Equal(t, "/", page("GET", "/groups/42", "").header.Get("Location"))
	require.Contains(t, string(page("GET", "/", "").body), "Who are you today?")
	for _, file := range []string{"app.js", "style.css", "icon.svg"} {
		require.Equal(t, 200, page("GET", "/static/"+file, "").status)
	}
}

// events records a person's stream. What it returns waits for an event, old or new, that is what it is asked for.
func (p *person) events() func(name string, is func(map[string]any) bool) map[string]any {
	p.t.Helper()
	resp, err := p.http.Get(p.base + "/events?since=1")
	require.NoError(p.t, err)
	require.Equal(p.t, "text/event-stream", resp.Header.Get("Content-Type"))
	type event struct {
		name string
		data map[string]any
	}
	var mu sync.Mutex
	var all []event
	ended := make(chan struct{})
	p.t.Cleanup(func() { _ = resp.Body.Close(); <-ended })
	go func() {
		defer close(ended)
		lines, name := bufio.NewScanner(resp.Body), ""
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if after, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				name = after
			}
			if after, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var data map[string]any
				_ = json.Unmarshal([]byte(after), &data)
				mu.Lock()
				all = append(all, event{name, data})
				mu.Unlock()
			}
		}
	}()
	return func(name string, is func(map[string]any) bool) map[string]any {
		p.t.Helper()
		return waitFor(p.t, "event "+name, func() (map[string]any, bool) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range all {
				if e.name == name && is(e.data) {
					return e.data, true
				}
			}
			return nil, false
		})
	}
}

// A stream shows an account what concerns it, and nothing of others.
func TestTheStream(t *testing.T) { everyStore(t, testTheStream) }

func testTheStream(t *testing.T, o options) {
	o.apps = pinned
	s := launch(t, o)
	zhang, wang := s.login("zhang-san"), s.login("wang-wu")
	zhang.say("7", "", "before")
	mine, others := zhang.events(), wang.events()
	any1 := func(map[string]any) bool { return true }
	with := func(key, text string) func(map[string]any) bool {
		return func(v map[string]any) bool { return strings.Contains(v[key].(string), text) }
	}
	mine("hello", any1)
	others("hello", any1)
	zhang.say("7", "", "not for Wang Wu")
	m := zhang.say("42", "t1", "@probe hello")
	require.Equal(t, "7", mine("message", with("html", "not for Wang Wu"))["group"])
	got := mine("message", with("id", m.ID))
	require.Equal(t, "t1", got["thread"])
	require.Contains(t, got["html"], "<mark>@probe</mark>")
	require.Equal(t, m.ID, others("message", any1)["id"], "the first that Wang Wu hears of")
	mine("operation", with("text", "mention "+m.ID))
	mine("story", with("state", "issued"))
	tok := s.probe().one()
	mine("story", with("state", "redeemed"))
	for range 3 {
		s.probe().api(tok, "POST", "/groups/42/messages", `{"text":"x","thread":"t1"}`)
	}
	st := mine("story", with("state", "used_up"))
	require.EqualValues(t, 0, st["left"])
	require.NotContains(t, st["html"], "bhst_")
	require.NotContains(t, st["html"], "bhsc_")
	require.Empty(t, wang.grants())
}

// Ctrl-C ends the server although streams and long polls are open.
func TestStopsWithOpenStreams(t *testing.T) {
	s := launch(t, options{apps: pinned})
	zhang := s.login("zhang-san")
	resp, err := zhang.http.Get(s.base + "/events")
	require.NoError(t, err)
	defer resp.Body.Close()
	polling, written := make(chan error, 1), make(chan struct{})
	go func() {
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(written) }})
		req, _ := http.NewRequestWithContext(ctx, "GET", s.base+"/oauth2/grants?wait=30s", nil)
		req.SetBasicAuth("probe", url.QueryEscape("s3cr:t +%&-"))
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		polling <- err
	}()
	<-written
	// The poll is under way when a stream that came after it has begun.
	again, err := zhang.http.Get(s.base + "/events")
	require.NoError(t, err)
	defer again.Body.Close()
	began := time.Now()
	require.NoError(t, s.stop())
	require.Less(t, time.Since(began), 5*time.Second)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err, "the stream came to its end")
	<-polling
}

func TestFlags(t *testing.T) {
	var usage *usageError
	for _, args := range [][]string{
		{"-nope"}, {"more"}, {"-addr", "nonsense"}, {"-addr", "0.0.0.0:0"}, {"-addr", ":8080"}, {"-addr", "example.com:80"}, {"-apps", "missing.json"},
	} {
		var out bytes.Buffer
		err := run(context.Background(), args, &out, io.Discard)
		require.ErrorAs(t, err, &usage, "%v", args)
		require.Empty(t, out.String())
	}
	err := run(context.Background(), []string{"-addr", "127.0.0.1:0", "-info", filepath.Join(t.TempDir(), "no", "such", "folder")}, io.Discard, io.Discard)
	require.Error(t, err)
	require.NotErrorAs(t, err, &usage)
}
