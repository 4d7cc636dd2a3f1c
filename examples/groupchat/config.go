package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
)

// The apps and their triggers: the built-in ones, or those of a file.
type apps struct {
	list     []authz.App
	triggers []grant.Trigger
	audience string // of the tokens of stateless triggers; empty: there are none
}

const (
	maxFile  = 1 << 20
	maxDepth = 8
)

// readApps reads the file of -apps. Every fault is a line "file:line: field: what is wrong", all of them at once.
func readApps(path string) (*apps, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s:1: the file is larger than %d bytes", path, maxFile)
	}
	if i := invalidUTF8(text); i >= 0 {
		return nil, fmt.Errorf("%s:%d: the file is not UTF-8", path, 1+bytes.Count(text[:i], []byte("\n")))
	}
	return parseApps(path, text)
}

// invalidUTF8 is where text stops being UTF-8; -1: nowhere. (A JSON decoder would put another character in its place.)
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

func parseApps(path string, text []byte) (*apps, error) {
	r := &appsReader{path: path, text: text}
	root, err := r.parse()
	if err != nil {
		return nil, err
	}
	var out apps
	var where []*node // of the apps
	for _, m := range r.fields(root, "", "apps", "triggers", "jwt_audience") {
		if m.name == "jwt_audience" {
			out.audience = r.text1(m.value, m.name)
			if _, err := authz.New(trial(apps{audience: out.audience})); err != nil {
				r.fault(m.value, m.name, "%s", short(flat(err), "authz: JWTAudience: "))
			}
			continue
		}
		if m.value.kind != '[' {
			r.fault(m.value, m.name, "is not a list")
			continue
		}
		for i, n := range m.value.items {
			path := fmt.Sprintf("%s[%d]", m.name, i)
			if m.name == "apps" {
				out.list, where = append(out.list, r.app(n, path)), append(where, n)
			} else {
				out.triggers = append(out.triggers, r.trigger(n, path))
			}
		}
	}
	if r.faults != nil {
		return nil, errors.Join(r.faults...)
	}
	if root.member("apps") == nil {
		r.fault(root, "apps", "is missing")
	}
	for i, n := range where {
		r.judgeApp(n, fmt.Sprintf("apps[%d]", i), out.list[i])
		if slices.ContainsFunc(out.list[:i], func(a authz.App) bool { return a.ID == out.list[i].ID }) {
			r.fault(n.at("id"), fmt.Sprintf("apps[%d].id", i), "there is another app %q above", out.list[i].ID)
		}
	}
	if r.faults == nil { // a trigger is judged with apps that are sound
		seen := map[string]bool{}
		for i, t := range out.triggers {
			n, path := root.member("triggers").items[i], fmt.Sprintf("triggers[%d]", i)
			r.judgeTrigger(n, path, out, t)
			if t.ID != "" && seen[t.ID] {
				r.fault(n.at("id"), path+".id", "there is another trigger %q above", t.ID)
			}
			seen[t.ID] = true
		}
	}
	if r.faults == nil {
		if _, err := authz.New(trial(out, out.triggers...)); err != nil { // what only shows in the whole
			r.fault(root, "", "%s", flat(err))
		}
	}
	if r.faults != nil {
		return nil, errors.Join(r.faults...)
	}
	return &out, nil
}

// trial is a server that is never used: authz.New knows best what is wrong with a configuration.
func trial(a apps, triggers ...grant.Trigger) authz.Config {
	return authz.Config{Issuer: "http://127.0.0.1", Apps: a.list, Triggers: triggers, JWTAudience: a.audience, AllowWebhooksTo: loopbackHosts(a.list),
		Permit: func(context.Context, grant.Access) error { return nil }}
}

// loopbackHosts are those that webhooks may go to although they are on this machine: a demo's apps mostly are.
func loopbackHosts(list []authz.App) []string {
	var out []string
	for _, a := range list {
		if u, err := url.Parse(a.Webhook); err == nil && u.Host != "" && isLoopback(u.Hostname()) {
			out = append(out, u.Host)
		}
	}
	return out
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func (r *appsReader) app(n *node, path string) authz.App {
	var a authz.App
	for _, m := range r.fields(n, path, "id", "name", "secret", "secret_hash", "jwks", "token_endpoint_auth_method", "dpop_bound_access_tokens", "actions", "webhook", "webhook_secret", "redirect_uris", "introspect", "real_names") {
		field := path + "." + m.name
		switch m.name {
		case "id":
			a.ID = r.text1(m.value, field)
		case "name":
			a.Name = r.text1(m.value, field)
		case "secret":
			a.Secret = grant.NewSecret(r.text1(m.value, field))
		case "secret_hash":
			a.SecretHash = grant.NewSecret(r.text1(m.value, field))
		case "jwks":
			if m.value.kind != '{' {
				r.fault(m.value, field, "is not a JWK set, an object with keys")
			}
			a.JWKS = string(r.text[m.value.start:m.value.end])
		case "dpop_bound_access_tokens":
			a.KeyBound = r.yes(m.value, field)
		case "token_endpoint_auth_method":
			a.AuthMethod = r.text1(m.value, field)
		case "actions":
			a.Actions = r.texts(m.value, field)
		case "webhook":
			a.Webhook = r.text1(m.value, field)
		case "webhook_secret":
			a.WebhookSecret = grant.NewSecret(r.text1(m.value, field))
		case "redirect_uris":
			a.RedirectURIs = r.texts(m.value, field)
		case "introspect":
			a.Introspect = r.yes(m.value, field)
		case "real_names":
			a.RealNames = r.yes(m.value, field)
		}
	}
	return a
}

// trigger leaves the reading to grant.Trigger, one field at a time, so that a fault has its line.
func (r *appsReader) trigger(n *node, path string) grant.Trigger {
	var t grant.Trigger
	if n.kind != '{' {
		r.fault(n, path, "is not an object")
		return t
	}
	before := len(r.faults)
	for i, m := range n.members {
		if slices.ContainsFunc(n.members[:i], func(o jsonMember) bool { return o.name == m.name }) {
			r.fault(m.value, path+"."+m.name, "is there twice")
			continue
		}
		alone, _ := json.Marshal(map[string]json.RawMessage{m.name: r.text[m.value.start:m.value.end]})
		var one grant.Trigger
		if err := json.Unmarshal(alone, &one); err != nil {
			r.fault(m.value, path+"."+m.name, "%s", short(flat(err), "grant: invalid: "))
		}
	}
	if len(r.faults) == before {
		if err := json.Unmarshal(r.text[n.start:n.end], &t); err != nil {
			r.fault(n, path, "%s", short(flat(err), "grant: invalid: "))
		}
	}
	return t
}

// judgeApp tries one field at a time in an app that is sound otherwise: what is refused then is that field's fault.
func (r *appsReader) judgeApp(n *node, path string, a authz.App) {
	sound := authz.App{ID: "app", Secret: grant.NewSecret("0123456789abcdef")}
	for _, f := range []struct {
		name string
		set  func(*authz.App)
	}{
		{"id", func(x *authz.App) { x.ID = a.ID }},
		{"secret", func(x *authz.App) {
			if !a.Secret.IsZero() || a.SecretHash.IsZero() && a.JWKS == "" && a.AuthMethod != "none" {
				x.Secret = a.Secret
			}
		}},
		{"secret_hash", func(x *authz.App) {
			if !a.SecretHash.IsZero() {
				x.Secret, x.SecretHash = grant.Secret{}, a.SecretHash
			}
		}},
		{"jwks", func(x *authz.App) { x.JWKS = a.JWKS }},
		{"token_endpoint_auth_method", func(x *authz.App) {
			x.AuthMethod, x.JWKS = a.AuthMethod, a.JWKS
			if a.AuthMethod == "none" {
				x.Secret, x.SecretHash = a.Secret, a.SecretHash
			}
		}},
		{"actions", func(x *authz.App) { x.Actions = a.Actions }},
		{"webhook", func(x *authz.App) { x.Webhook = a.Webhook }},
		{"webhook_secret", func(x *authz.App) { x.WebhookSecret = a.WebhookSecret }},
		{"redirect_uris", func(x *authz.App) { x.RedirectURIs = a.RedirectURIs }},
	} {
		one := sound
		f.set(&one)
		if _, err := authz.New(trial(apps{list: []authz.App{one}})); err != nil {
			r.fault(n.at(f.name), path+"."+f.name, "%s", short(flat(err), fmt.Sprintf("app %.80q: ", one.ID)))
		}
	}
}

// judgeTrigger finds the field in the text of the fault: `trigger "id": field: what is wrong`.
func (r *appsReader) judgeTrigger(n *node, path string, all apps, t grant.Trigger) {
	if t.ID == "" {
		t.ID = path
	}
	_, err := authz.New(trial(all, t))
	if err == nil {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		text := short(line, fmt.Sprintf("trigger %.80q: ", t.ID))
		field, rest, ok := strings.Cut(text, ": ")
		if !ok || strings.Trim(field, "abcdefghijklmnopqrstuvwxyz_.") != "" {
			r.fault(n, path, "%s", text)
			continue
		}
		at := n
		for name := range strings.SplitSeq(field, ".") {
			at = at.at(name)
		}
		r.fault(at, path+"."+field, "%s", rest)
	}
}

func flat(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// short cuts what stands before and in the prefix.
func short(text, prefix string) string {
	if _, rest, ok := strings.Cut(text, prefix); ok {
		return rest
	}
	return text
}

// A node is a JSON value that knows where it stands.
type node struct {
	start, end int64
	kind       rune // { [ " t(rue or false) 0 n(ull)
	text       string
	yes        bool
	members    []jsonMember
	items      []*node
}

type jsonMember struct {
	name  string
	value *node
}

func (n *node) member(name string) *node {
	for _, m := range n.members {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// at is the member, or where it ought to be.
func (n *node) at(name string) *node {
	if m := n.member(name); m != nil {
		return m
	}
	return n
}

type appsReader struct {
	path   string
	text   []byte
	dec    *json.Decoder
	faults []error
}

func (r *appsReader) fault(n *node, field, format string, args ...any) {
	r.faults = append(r.faults, r.faultAt(n.start, field, format, args...))
}

func (r *appsReader) faultAt(offset int64, field, format string, args ...any) error {
	line := 1 + bytes.Count(r.text[:min(offset, int64(len(r.text)))], []byte("\n"))
	if field != "" {
		field += ": "
	}
	return fmt.Errorf("%s:%d: %s%s", r.path, line, field, fmt.Sprintf(format, args...))
}

func (r *appsReader) parse() (*node, error) {
	r.dec = json.NewDecoder(bytes.NewReader(r.text))
	r.dec.UseNumber()
	root, err := r.value("", 0)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); err != io.EOF {
		return nil, r.faultAt(r.next(), "", "text after the end")
	}
	if root.kind != '{' {
		return nil, r.faultAt(root.start, "", "is not an object with apps and triggers")
	}
	return root, nil
}

// next is where the next token begins.
func (r *appsReader) next() int64 {
	at := r.dec.InputOffset()
	for at < int64(len(r.text)) && strings.IndexByte(" \t\r\n:,", r.text[at]) >= 0 {
		at++
	}
	return at
}

func (r *appsReader) value(path string, depth int) (*node, error) {
	n := &node{start: r.next()}
	if depth > maxDepth {
		return nil, r.faultAt(n.start, path, "is nested too deeply")
	}
	token, err := r.dec.Token()
	if err != nil {
		return nil, r.syntax(n.start, path, err)
	}
	switch t := token.(type) {
	case json.Delim:
		n.kind = rune(t)
		for r.dec.More() {
			name, below := "", fmt.Sprintf("%s[%d]", path, len(n.items))
			if t == '{' {
				at := r.next()
				key, err := r.dec.Token()
				if err != nil {
					return nil, r.syntax(at, path, err)
				}
				name, _ = key.(string)
				below = strings.TrimPrefix(path+"."+name, ".")
			}
			v, err := r.value(below, depth+1)
			if err != nil {
				return nil, err
			}
			if t == '{' {
				n.members = append(n.members, jsonMember{name, v})
			} else {
				n.items = append(n.items, v)
			}
		}
		at := r.next()
		if _, err := r.dec.Token(); err != nil { // the end
			return nil, r.syntax(at, path, err)
		}
	case string:
		n.kind, n.text = '"', t
	case bool:
		n.kind, n.yes = 't', t
	case nil:
		n.kind = 'n'
	default:
		n.kind = '0'
	}
	n.end = r.dec.InputOffset()
	return n, nil
}

func (r *appsReader) syntax(at int64, field string, err error) error {
	var wrong *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		return r.faultAt(max(at, wrong.Offset-1), field, "is not JSON: %v", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return r.faultAt(int64(len(r.text)), field, "the file ends too early")
	}
	return r.faultAt(at, field, "%v", err)
}

// fields returns the members of an object; unknown and repeated ones are faults.
func (r *appsReader) fields(n *node, path string, known ...string) []jsonMember {
	if n.kind != '{' {
		r.fault(n, path, "is not an object")
		return nil
	}
	var out []jsonMember
	for i, m := range n.members {
		field := strings.TrimPrefix(path+"."+m.name, ".")
		switch {
		case !slices.Contains(known, m.name):
			r.fault(m.value, field, "is not a field; known are %s", strings.Join(known, ", "))
		case slices.ContainsFunc(n.members[:i], func(o jsonMember) bool { return o.name == m.name }):
			r.fault(m.value, field, "is there twice")
		default:
			out = append(out, m)
		}
	}
	return out
}

func (r *appsReader) text1(n *node, field string) string {
	if n.kind != '"' {
		r.fault(n, field, "is not a text")
	}
	return n.text
}

func (r *appsReader) texts(n *node, field string) []string {
	if n.kind != '[' {
		r.fault(n, field, "is not a list of texts")
		return nil
	}
	var out []string
	for i, item := range n.items {
		out = append(out, r.text1(item, fmt.Sprintf("%s[%d]", field, i)))
	}
	return out
}

func (r *appsReader) yes(n *node, field string) bool {
	if n.kind != 't' {
		r.fault(n, field, "is neither true nor false")
	}
	return n.yes
}

// withResourceServer returns the client that may introspect: the file's, or a new one that is added.
func (a *apps) withResourceServer() string {
	for _, app := range a.list {
		if app.Introspect {
			return app.ID
		}
	}
	id := "resource-server"
	for n := 2; slices.ContainsFunc(a.list, func(app authz.App) bool { return app.ID == id }); n++ {
		id = fmt.Sprintf("resource-server-%d", n)
	}
	a.list = append(a.list, authz.App{ID: id, Name: "The chat's own resource server", Secret: newSecret(), Introspect: true})
	return id
}

func newSecret() grant.Secret {
	var raw [24]byte
	_, _ = rand.Read(raw[:]) // never fails
	return grant.NewSecret(hex.EncodeToString(raw[:]))
}

// info is the file of -info: all that is needed to drive the server. It holds the apps' secrets.
type info struct {
	Issuer         string       `json:"issuer"`
	APIBase        string       `json:"api_base"`
	Users          []user       `json:"users"`
	Groups         []groupView  `json:"groups"`
	Apps           []infoClient `json:"apps"`
	ResourceServer infoClient   `json:"resource_server"`
}

type infoClient struct {
	ID               string   `json:"client_id"`
	Secret           string   `json:"client_secret"`
	Name             string   `json:"name,omitempty"`
	Webhook          string   `json:"webhook"`
	WebhookSecret    string   `json:"webhook_secret"`
	WebhookPublicKey string   `json:"webhook_public_key"`
	RedirectURIs     []string `json:"redirect_uris,omitempty"`
}

func infoOf(ctx context.Context, c *chat, a *apps, resourceServer string, az *authz.Server) (info, error) {
	groups, err := c.views(ctx, "")
	if err != nil {
		return info{}, err
	}
	out := info{Issuer: az.Issuer(), APIBase: az.Issuer() + "/api", Users: c.users, Groups: groups, Apps: []infoClient{}}
	for _, app := range a.list {
		one := infoClient{ID: app.ID, Secret: app.Secret.Reveal(), Name: app.Name, Webhook: app.Webhook,
			WebhookSecret: az.WebhookSecret(app.ID).Reveal(), WebhookPublicKey: az.WebhookKey(app.ID), RedirectURIs: app.RedirectURIs}
		if app.ID == resourceServer {
			out.ResourceServer = one
		}
		if !app.Introspect || len(app.Actions) > 0 {
			out.Apps = append(out.Apps, one)
		}
	}
	return out, nil
}

// writeInfo puts the file in its place whole, for its owner alone.
func writeInfo(path string, v info) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".info-*") // has mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
