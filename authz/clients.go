package authz

import (
	"context"
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
	"unicode/utf8"

	"github.com/behest-go/behest/grant"
)

// Limits of a request to an endpoint.
const (
	maxBody       = 64 << 10 // bytes
	maxParameters = 64
)

// Clients knows the apps and authenticates them (RFC 6749 §2.3). It keeps a SHA-256 of their secrets and not the
// secrets, which are long and made by machines. It is safe for concurrent use. Those that NewClients makes never
// change; a Server's follow its configuration.
type Clients struct {
	fixed  *roster
	follow func(context.Context) (*roster, error) // nil: fixed
}

// A roster is the clients at one time. It never changes.
type roster struct {
	byID map[string]*client
	none client // whose secret is compared when there is no such client
}

func newRoster() *roster {
	r := &roster{byID: map[string]*client{}}
	_, _ = rand.Read(r.none.hash[:]) // no secret has this hash; never fails
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
	app  App // without secrets
	hash [sha256.Size]byte
}

// NewClients reports every fault at once: an ID that is missing, out of its grammar or there twice, a secret that is
// missing, too short or too long.
func NewClients(apps []App) (*Clients, error) {
	c := newRoster()
	var faults []error
	for _, a := range apps {
		if len(a.ID) == 0 || len(a.ID) > 64 || strings.Trim(a.ID, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			faults = append(faults, fmt.Errorf("authz: app %.80q: an ID has 1 to 64 of A-Z a-z 0-9 . _ -", a.ID))
		}
		if c.byID[a.ID] != nil {
			faults = append(faults, fmt.Errorf("authz: app %.80q is there twice", a.ID))
		}
		secret := a.Secret.Reveal()
		if fault := secretFault(secret); fault != "" {
			faults = append(faults, fmt.Errorf("authz: app %.80q: Secret %s", a.ID, fault))
		}
		a.Secret, a.WebhookSecret = grant.Secret{}, grant.Secret{}
		a.Actions, a.RedirectURIs = slices.Clone(a.Actions), slices.Clone(a.RedirectURIs)
		c.byID[a.ID] = &client{app: a, hash: sha256.Sum256([]byte(secret))}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Clients{fixed: c}, nil
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
// in a POST, by client_id and client_secret in the body (client_secret_post), never by both. The App has no secrets
// and is not to be changed.
//
// The body of a POST is read as the endpoints read it: an application/x-www-form-urlencoded form of at most 64 KiB,
// UTF-8, no parameter twice, none in the query. It is left in r.PostForm and r.Form; a form that was parsed before is
// taken from there. An error that wraps [ErrInvalidRequest] is a fault of the request, 400; any other is 401: no,
// unknown or wrong credentials, which cost the same and are not told apart.
func (c *Clients) Authenticate(r *http.Request) (*App, error) {
	form := url.Values{}
	if r.Method == http.MethodPost {
		var err error
		if form, err = readForm(r); err != nil {
			return nil, err
		}
	}
	return c.authenticate(r, form)
}

func (c *Clients) authenticate(r *http.Request, form url.Values) (*App, error) {
	header := r.Header.Values("Authorization")
	if len(header) > 1 {
		return nil, badRequest("the Authorization header is repeated")
	}
	// RFC 6749 §2.3: the client MUST NOT use more than one method in each request.
	secret := form.Get("client_secret")
	methods := len(header)
	if secret != "" {
		methods++
	}
	if form.Get("client_assertion") != "" {
		methods++
	}
	if methods > 1 {
		return nil, badRequest("more than one method of client authentication")
	}
	id := form.Get("client_id")
	if len(header) == 1 {
		user, password, ok := basic(header[0])
		switch {
		case !ok:
			user, password = "", ""
		case id != "" && id != user:
			return nil, badRequest("client_id is not the client that authenticates")
		}
		id, secret = user, password
	}
	now, err := c.now(r.Context())
	if err != nil {
		return nil, err
	}
	if app := now.verify(id, secret); app != nil {
		return app, nil
	}
	return nil, errClient
}

// verify does the same work whether or not there is such a client.
func (c *roster) verify(id, secret string) *App {
	known, ok := c.byID[id]
	if !ok {
		known = &c.none
	}
	hash := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(hash[:], known.hash[:]) != 1 || !ok {
		return nil
	}
	app := known.app
	return &app
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
