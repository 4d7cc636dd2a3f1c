package authz

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/store"
)

// Limits of a request to an endpoint.
const (
	maxBody       = 64 << 10 // bytes
	maxParameters = 64
)

// Clients knows the apps and authenticates them (RFC 6749 §2.3). Of their secrets it keeps a SHA-256, or the hash that
// it was given. It is safe for concurrent use. Those that NewClients makes never change; a Server's follow its
// configuration. Set the fields before the first request.
type Clients struct {
	// Audience are the values of "aud" with which assertions are taken (RFC 7523 §3): the issuer, and the URLs of the
	// endpoints. Store is where their IDs are kept, so that each is taken once. Without both private_key_jwt is refused.
	Audience []string
	Store    store.Store
	Now      func() time.Time // for assertions; nil: time.Now

	fixed   *roster
	follow  func(context.Context) (*roster, error) // nil: fixed
	hashing chan struct{}                          // as many as hash at a time
}

func newClients() *Clients { return &Clients{hashing: make(chan struct{}, mostHashing())} }

// A roster is the clients at one time. It never changes.
type roster struct {
	byID map[string]*client
	none client // whose secret is compared when there is no such client
	slow *slowHash
}

func newRoster() *roster {
	r := &roster{byID: map[string]*client{}}
	_, _ = rand.Read(r.none.hash[:]) // no secret has this hash; never fails
	r.none.keys, _ = jose.ParseSet([]byte(decoys))
	return r
}

// now fails when nobody knows which clients there are.
func (c *Clients) now(ctx context.Context) (*roster, error) {
	if c.follow == nil {
		return c.fixed, nil
	}
	return c.follow(ctx)
}

type client struct {
	app  App               // without secrets
	hash [sha256.Size]byte // of a secret that a machine made; random if there is none
	slow *slowHash         // of a secret that a person chose; nil: there is none
	keys jose.Set          // for private_key_jwt
	mac  [sha256.Size]byte // the key that its access tokens are checked with
}

// add takes a client as clientOf made it; root is a key for those who have no secret.
func (r *roster) add(c client, root []byte) {
	switch {
	case c.slow != nil:
		c.hash, c.mac = r.none.hash, sha256.Sum256([]byte(c.slow.text))
		if r.slow == nil || r.slow.cost() < c.slow.cost() {
			r.slow = c.slow
		}
	case c.hash == [sha256.Size]byte{}:
		c.hash = r.none.hash
		mac := hmac.New(sha256.New, root)
		mac.Write([]byte(c.app.ID))
		mac.Sum(c.mac[:0])
	default:
		c.mac = c.hash
	}
	r.byID[c.app.ID] = &c
}

// NewClients reports every fault at once: an ID that is missing, out of its grammar or there twice, credentials that
// are missing or malformed. See App for what they are. The access tokens of a client that has no secret are good in
// this process alone.
func NewClients(apps []App) (*Clients, error) {
	c, made := newClients(), newRoster()
	root := make([]byte, sha256.Size)
	_, _ = rand.Read(root) // never fails
	var faults []error
	for _, a := range apps {
		if len(a.ID) == 0 || len(a.ID) > 64 || strings.Trim(a.ID, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			faults = append(faults, fmt.Errorf("authz: app %.80q: an ID has 1 to 64 of A-Z a-z 0-9 . _ -", a.ID))
		}
		if made.byID[a.ID] != nil {
			faults = append(faults, fmt.Errorf("authz: app %.80q is there twice", a.ID))
		}
		kept := a.kept()
		of, err := clientOf(&kept)
		if err != nil {
			faults = append(faults, fmt.Errorf("authz: app %.80q: %w", a.ID, err))
		}
		of.app.WebhookSecret = grant.Secret{}
		of.app.Actions = slices.Clone(of.app.Actions)
		made.add(of, root)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	c.fixed = made
	return c, nil
}

// secretFault is what is wrong with a client secret, if anything is.
func secretFault(secret string) string {
	if n := len(secret); n < 8 || n > 256 {
		return fmt.Sprintf("has %d bytes, want 8 to 256", n)
	}
	if !plain(secret) {
		return "is not text, so no client could send it"
	}
	return ""
}

// Authenticate says which app sent the request: by HTTP Basic with form-encoded credentials (client_secret_basic) or,
// in a POST, by client_id and client_secret in the body (client_secret_post) or by an assertion there (private_key_jwt,
// RFC 7523), never by two of them. The App has no secrets and is not to be changed. A public client is never
// authenticated.
//
// The body of a POST is read as the endpoints read it: an application/x-www-form-urlencoded form of at most 64 KiB,
// UTF-8, no parameter twice, none in the query. It is left in r.PostForm and r.Form; a form that was parsed before is
// taken from there. An error that wraps [ErrInvalidRequest] is a fault of the request, 400; any other is 401: no,
// unknown or wrong credentials, which cost the same and are not told apart. An assertion is used up by this call.
func (c *Clients) Authenticate(r *http.Request) (*App, error) {
	form := url.Values{}
	if r.Method == http.MethodPost {
		var err error
		if form, err = readForm(r); err != nil {
			return nil, err
		}
	}
	return c.authenticate(r, form, false)
}

// authenticate is Authenticate for a form that was read. With public it also returns a client of the method none that
// says no more than its client_id: who sent that request is not known.
func (c *Clients) authenticate(r *http.Request, form url.Values, public bool) (*App, error) {
	header := r.Header.Values("Authorization")
	if len(header) > 1 {
		return nil, badRequest("the Authorization header is repeated")
	}
	// RFC 6749 §2.3: the client MUST NOT use more than one method in each request.
	id, secret := form.Get("client_id"), form.Get("client_secret")
	asserted := form.Get("client_assertion") != "" || form.Get("client_assertion_type") != ""
	methods := len(header)
	if secret != "" {
		methods++
	}
	if asserted {
		methods++
	}
	if methods > 1 {
		return nil, badRequest("more than one method of client authentication")
	}
	now, err := c.now(r.Context())
	if err != nil {
		return nil, err
	}
	if asserted {
		return c.assertion(r.Context(), now, form)
	}
	method := secretPost
	if len(header) == 1 {
		method = secretBasic
		user, password, ok := basic(header[0])
		switch {
		case !ok:
			user, password = "", ""
		case id != "" && id != user:
			return nil, badRequest("client_id is not the client that authenticates")
		}
		id, secret = user, password
	}
	if public && methods == 0 {
		if app := now.byName(id); app != nil && app.AuthMethod == noAuth {
			return app, nil
		}
	}
	app, err := c.verify(r.Context(), now, id, secret)
	if err != nil {
		return nil, err
	}
	if app == nil || app.AuthMethod != "" && app.AuthMethod != method {
		return nil, errClient
	}
	return app, nil
}

// verify does the same work whether or not there is such a client: one SHA-256, and where any client has a hash that is
// slow, every refusal costs such a one. It returns nil for no.
func (c *Clients) verify(ctx context.Context, now *roster, id, secret string) (*App, error) {
	known, ok := now.byID[id]
	if !ok {
		known = &now.none
	}
	hash := sha256.Sum256([]byte(secret))
	right := subtle.ConstantTimeCompare(hash[:], known.hash[:]) == 1
	if !right && now.slow != nil {
		against := known.slow
		if against == nil {
			against = now.slow
		}
		same, err := c.compare(ctx, against, secret)
		if err != nil {
			return nil, err
		}
		right = same && known.slow != nil
	}
	if !right || !ok {
		return nil, nil
	}
	app := known.app
	return &app, nil
}

// byName is for tokens that name their client; nil if it is not registered any more.
func (c *roster) byName(id string) *App {
	known, ok := c.byID[id]
	if !ok {
		return nil
	}
	app := known.app
	return &app
}

// credentials returns what follows the scheme, whose case does not matter (RFC 9110 §11.1).
func credentials(header, scheme string) (string, bool) {
	got, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(got, scheme) {
		return "", false
	}
	return strings.Trim(rest, " "), true
}

// basic reads RFC 7617, with ID and secret form-encoded as RFC 6749 §2.3.1 wants it. The first colon separates, so an
// unencoded one in the secret is no harm.
func basic(header string) (id, secret string, ok bool) {
	text, ok := credentials(header, "Basic")
	if !ok || strings.ContainsAny(text, "\r\n") { // which DecodeString would skip
		return "", "", false
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return "", "", false
	}
	id, secret, ok = strings.Cut(string(raw), ":")
	if !ok {
		return "", "", false
	}
	if id, err = url.QueryUnescape(id); err != nil || !plain(id) {
		return "", "", false
	}
	if secret, err = url.QueryUnescape(secret); err != nil || !plain(secret) {
		return "", "", false
	}
	return id, secret, true
}

// readForm reads the parameters of a POST, strictly. Its errors are faults and quote nothing: a secret may be among
// what is malformed.
func readForm(r *http.Request) (url.Values, error) {
	if r.URL.RawQuery != "" {
		return nil, badRequest("parameters in the query; they belong into the body")
	}
	return readBody(r)
}

// readBody is readForm for a POST whose query means something as well.
func readBody(r *http.Request) (url.Values, error) {
	types := r.Header.Values("Content-Type")
	if len(types) != 1 {
		return nil, badRequest("one Content-Type is required: application/x-www-form-urlencoded")
	}
	if media, _, err := mime.ParseMediaType(types[0]); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, badRequest("the Content-Type must be application/x-www-form-urlencoded")
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, badRequest("the body must not be compressed")
	}
	if r.PostForm != nil { // a middleware was here before
		for name, values := range r.PostForm {
			if len(values) != 1 {
				return nil, badRequest("a parameter is repeated")
			}
			if name == "" || !plain(name) || !plain(values[0]) {
				return nil, badRequest("a parameter is not text in UTF-8")
			}
		}
		return r.PostForm, nil
	}
	const tooLarge = "the body is larger than 64 KiB"
	if r.ContentLength > maxBody {
		return nil, badRequest(tooLarge)
	}
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, maxBody+1)); err != nil {
			return nil, badRequest("the body cannot be read")
		}
	}
	if len(body) > maxBody {
		return nil, badRequest(tooLarge)
	}
	form, err := parseForm(string(body))
	if err != nil {
		return nil, err
	}
	r.PostForm, r.Form = form, form
	return form, nil
}

func parseForm(text string) (url.Values, error) {
	form := url.Values{}
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		// Some software separates by it and some does not: let there be no doubt what the parameters are.
		if strings.Contains(pair, ";") {
			return nil, badRequest("a semicolon that is not percent-encoded")
		}
		name, value, _ := strings.Cut(pair, "=")
		var err error
		if name, err = url.QueryUnescape(name); err == nil {
			value, err = url.QueryUnescape(value)
		}
		switch {
		case err != nil:
			return nil, badRequest("malformed percent-encoding")
		case name == "" || !plain(name) || !plain(value):
			return nil, badRequest("a parameter is not text in UTF-8")
		case form.Has(name): // RFC 6749 §3.2
			return nil, badRequest("a parameter is repeated")
		case len(form) == maxParameters:
			return nil, badRequest("too many parameters")
		}
		form[name] = []string{value}
	}
	return form, nil
}

func plain(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }
