package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/behest-go/behest/scope"
)

const (
	grantType   = "urn:behest:grant-type:operation"
	maxAnswer   = 1 << 20
	callTimeout = 30 * time.Second
	maxWait     = 30 * time.Second
	maxCode     = 4096
)

// A Client speaks to one social server as one app. Set its fields before its first use and not after; then it may be used by
// many goroutines. It has nothing to close.
type Client struct {
	// Issuer is the server's URL, exactly as it names itself in its metadata and in callbacks. Required.
	Issuer string
	// ID and Secret are the app's credentials. They are sent by HTTP Basic, form-encoded (RFC 6749 §2.3.1), so any
	// character may occur in them. Required, unless there is a Key.
	ID     string
	Secret Secret
	// Key, in place of Secret, is the key whose public half the server knows the app by (private_key_jwt, RFC 7523). It
	// never leaves the app: each request carries an assertion that is good for a minute, once. Zero: Secret.
	Key Key
	// DPoP binds the tokens that Redeem gets to this key, which may be the same one: whoever finds such a token cannot
	// use it (RFC 9449). Proofs are made, and nonces brought, by Redeem and Do; a request whose body cannot be sent again
	// (http.Request.GetBody) and that needs another nonce is an [*Error] with the code use_dpop_nonce, and good when it is
	// made again. Zero: tokens are not bound.
	DPoP Key
	// TokenURL, GrantsURL and RevokeURL are the endpoints. Zero: Issuer and "/oauth2/token", "/oauth2/grants",
	// "/oauth2/revoke".
	TokenURL, GrantsURL, RevokeURL string
	// API is a URL of the server's API: [Client.Do] sends tokens to its scheme, host and port and to no others. Zero: Issuer.
	API string
	// InsecureHTTP allows http to hosts other than loopback, where secret and tokens then travel in clear: only within a
	// network that you trust. Zero: https, or http to loopback.
	InsecureHTTP bool
	// Transport carries the requests. Nil: [http.DefaultTransport].
	Transport http.RoundTripper
	// Now is the clock by which a token's Expiry is reckoned. Nil: [time.Now].
	Now func() time.Time
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Redeem exchanges a grant's code for its token. It is done once: a code that was redeemed, even if the answer was
// lost, is void. Errors: an [*Error] ([ErrInvalidGrant] when the code is void, which needs no second try), one that
// wraps [ErrProtocol], or one of the network. It takes at most 30 seconds.
func (c *Client) Redeem(ctx context.Context, code Secret) (*Token, error) {
	if code.IsZero() {
		return nil, errors.New("app: redeem: no code")
	}
	return c.token(ctx, url.Values{"grant_type": {grantType}, "code": {code.Reveal()}})
}

// Exchange makes of a token one for less, to be handed to another app; or of one that another app has handed over, one
// for this app, if the server lets it (RFC 8693). Of want, Scope, Domain, Uses and Expiry count: for what, all in one
// domain; where, if there is no Scope; how often; until when. What is zero is as the token has it. Each use is one of
// the token as well, and all ends with that. Errors are as those of Redeem: an [*Error] with the code invalid_scope for
// more than the token allows, with invalid_request for a token that is no good.
func (c *Client) Exchange(ctx context.Context, token Secret, want Token) (*Token, error) {
	if token.IsZero() {
		return nil, errors.New("app: exchange: no token")
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token.Reveal()},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}}
	detail := struct {
		Type   string `json:"type"`
		Domain string `json:"domain,omitempty"`
		Uses   int64  `json:"uses,omitempty"`
	}{Type: "social_operation", Uses: want.Uses}
	if text := want.Scope.String(); text != "" {
		form.Set("scope", text)
	} else {
		detail.Domain = want.Domain.String()
	}
	if detail.Domain != "" || detail.Uses != 0 {
		text, err := json.Marshal([]any{detail})
		if err != nil {
			return nil, err
		}
		form.Set("authorization_details", string(text))
	}
	if !want.Expiry.IsZero() {
		life := want.Expiry.Sub(c.now())
		if life < time.Second {
			return nil, errors.New("app: exchange: Expiry is not a second ahead")
		}
		form.Set("expires_in", strconv.FormatInt(int64(life/time.Second), 10))
	}
	return c.token(ctx, form)
}

// token asks the token endpoint.
func (c *Client) token(ctx context.Context, form url.Values) (*Token, error) {
	sent := c.now() // before the server's clock starts, so that Expiry is never too late
	var wire struct {
		AccessToken Secret       `json:"access_token"`
		TokenType   string       `json:"token_type"`
		ExpiresIn   int64        `json:"expires_in"`
		Scope       scope.Set    `json:"scope"`
		GrantID     string       `json:"grant_id"`
		Uses        int64        `json:"uses"`
		Domain      scope.Domain `json:"domain"`
		Account     string       `json:"sub"`
		Event       Event        `json:"event"`
	}
	if err := c.call(ctx, callTimeout, http.MethodPost, c.TokenURL, "/oauth2/token", form, &wire); err != nil {
		return nil, err
	}
	switch {
	case !visible(wire.AccessToken.Reveal()):
		return nil, fmt.Errorf("%w: no usable access_token", ErrProtocol)
	case !strings.EqualFold(wire.TokenType, "Bearer") && (c.DPoP.IsZero() || !strings.EqualFold(wire.TokenType, dpop)): // RFC 6749 §7.1: not to be used otherwise
		return nil, fmt.Errorf("%w: the token_type is not Bearer", ErrProtocol)
	case wire.ExpiresIn <= 0 || wire.ExpiresIn > int64(100*365*24*time.Hour/time.Second):
		return nil, fmt.Errorf("%w: no sensible expires_in", ErrProtocol)
	case wire.Uses < 0:
		return nil, fmt.Errorf("%w: negative uses", ErrProtocol)
	}
	kind := "Bearer"
	if strings.EqualFold(wire.TokenType, dpop) {
		kind = dpop
	}
	return &Token{
		AccessToken: wire.AccessToken, Type: kind, GrantID: wire.GrantID, Account: wire.Account, Domain: wire.Domain,
		Scope: wire.Scope, Uses: wire.Uses, Event: wire.Event, Expiry: sent.Add(time.Duration(wire.ExpiresIn) * time.Second), now: c.Now,
	}, nil
}

// Revoke gives a token back when the work is done, before it expires (RFC 7009). A token that is over already is no error.
func (c *Client) Revoke(ctx context.Context, t *Token) error {
	if t == nil || t.AccessToken.IsZero() {
		return errors.New("app: revoke: no token")
	}
	form := url.Values{"token": {t.AccessToken.Reveal()}, "token_type_hint": {"access_token"}}
	return c.call(ctx, callTimeout, http.MethodPost, c.RevokeURL, "/oauth2/revoke", form, nil)
}

// Grants fetches the grants that wait for the app, and waits for one up to wait (0 to 30 seconds) if there is none.
// What it hands out is not handed out again for some 10 seconds, and then again until it is redeemed or too late; a [Poller]
// sees to that. Of malformed grants in an answer it returns the others, with an error that wraps [ErrProtocol].
func (c *Client) Grants(ctx context.Context, wait time.Duration) ([]Grant, error) {
	if wait < 0 || wait > maxWait {
		return nil, fmt.Errorf("app: grants: wait %v is not within 0 and %v", wait, maxWait)
	}
	var wire struct {
		Grants []json.RawMessage `json:"grants"`
	}
	query := url.Values{}
	if wait > 0 {
		query.Set("wait", wait.String())
	}
	err := c.call(ctx, wait+callTimeout, http.MethodGet, c.GrantsURL, "/oauth2/grants", query, &wire)
	var refused *Error
	if !c.Key.IsZero() && errors.As(err, &refused) && refused.Status == http.StatusUnauthorized {
		c.Key.forget(c) // the server has: another one
		err = c.call(ctx, wait+callTimeout, http.MethodGet, c.GrantsURL, "/oauth2/grants", query, &wire)
	}
	if err != nil {
		return nil, err
	}
	var grants []Grant
	var faults []error
	for i, raw := range wire.Grants {
		var g Grant
		err := json.Unmarshal(raw, &g)
		if err == nil {
			err = g.check()
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%w: grant %d: %w", ErrProtocol, i+1, err))
			continue
		}
		grants = append(grants, g)
	}
	return grants, errors.Join(faults...)
}

// Do calls the server's API as the user: it sends a copy of req with the token, and returns the answer if its status is
// 2xx; the caller closes the body. Any other status, a redirect too, is an [*Error] that says why, as far as the server did;
// its body is read and closed. The request's context bounds the whole, reading the body included.
//
// The token is sent only to the origin of [Client.API]; a request to any other is an error and is not sent.
func (c *Client) Do(req *http.Request, t *Token) (*http.Response, error) {
	resp, err := c.do(req, t)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return resp, nil
	}
	defer resp.Body.Close()
	body, _ := read(resp)
	return nil, refusal(resp, body)
}

func (c *Client) do(req *http.Request, t *Token) (*http.Response, error) {
	sent := false
	defer func() {
		if !sent && req.Body != nil {
			req.Body.Close() // as [http.Client.Do] does
		}
	}()
	if t == nil || t.AccessToken.IsZero() {
		return nil, errors.New("app: do: no token")
	}
	text := c.API
	if text == "" {
		text = c.Issuer
	}
	base, err := c.parse(text)
	if err != nil {
		return nil, err
	}
	if req.URL == nil || origin(req.URL) != origin(base) || req.URL.User != nil {
		return nil, fmt.Errorf("app: do: the token is for %s and is sent nowhere else", origin(base))
	}
	if t.Type == dpop && c.DPoP.IsZero() {
		return nil, errors.New("app: do: the token is bound to a key, and useless without its key: see Client.DPoP")
	}
	for again := false; ; again = true {
		out := req.Clone(req.Context())
		if again && req.GetBody != nil {
			if out.Body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("app: do: the body cannot be sent again: %w", err)
			}
		}
		if out.Header == nil {
			out.Header = make(http.Header)
		}
		if t.Type != dpop {
			out.Header.Set("Authorization", "Bearer "+t.AccessToken.Reveal())
			sent = true // from here on the transport closes the body
			return c.roundTrip(out)
		}
		proof, err := c.DPoP.proof(out.Method, out.URL, t.AccessToken.Reveal(), c.now())
		if err != nil {
			return nil, err
		}
		out.Header.Set("Authorization", "DPoP "+t.AccessToken.Reveal())
		out.Header.Set(dpop, proof)
		sent = true
		resp, err := c.roundTrip(out)
		if err != nil {
			return nil, err
		}
		c.DPoP.note(out.URL, resp.Header)
		// RFC 9449 §9
		asked := resp.StatusCode == http.StatusUnauthorized && strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="`+useNonce+`"`)
		if again || !asked || req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
			return resp, nil
		}
		resp.Body.Close()
	}
}

// Callback returns the code that the user's client brought to the app's redirect URI, with the parameters code and iss.
// Such a code lives for a minute at most: redeem it at once, and answer with a redirect so that it leaves the address bar.
//
// It takes GET alone; a parameter that is missing or repeated, or an iss other than Issuer (RFC 9207 §2.4), is an error
// that wraps [ErrCallback]; an error of the server's (the parameter error, with the right iss) is an [*Error].
//
// The code proves who clicked and not whose browser arrived: do not sign anyone in by it.
func (c *Client) Callback(r *http.Request) (Secret, error) {
	if r.Method != http.MethodGet && r.Method != "" {
		return Secret{}, fmt.Errorf("%w: the method is not GET", ErrCallback)
	}
	if len(r.URL.RawQuery) > 2*maxCode {
		return Secret{}, fmt.Errorf("%w: the query is too long", ErrCallback)
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Secret{}, fmt.Errorf("%w: the query is malformed", ErrCallback) // the cause quotes it
	}
	for _, name := range []string{"code", "iss", "error", "error_description"} {
		if len(query[name]) > 1 {
			return Secret{}, fmt.Errorf("%w: %s is repeated", ErrCallback, name)
		}
	}
	if c.Issuer == "" || query.Get("iss") != c.Issuer {
		return Secret{}, fmt.Errorf("%w: iss is missing or another one", ErrCallback)
	}
	if query.Has("error") {
		return Secret{}, &Error{Code: clean(query.Get("error"), 64), Description: clean(query.Get("error_description"), 512)}
	}
	code := query.Get("code")
	if len(code) > maxCode || !visible(code) {
		return Secret{}, fmt.Errorf("%w: no code", ErrCallback)
	}
	return NewSecret(code), nil
}

// check finds what is wrong with the fields, all of it.
func (c *Client) check() error {
	var faults []error
	switch {
	case c.ID == "" || c.Secret.IsZero() && c.Key.IsZero():
		faults = append(faults, errors.New("app: a Client needs ID and Secret, or a Key"))
	case !c.Secret.IsZero() && !c.Key.IsZero():
		faults = append(faults, errors.New("app: a Client has a Secret or a Key, not both"))
	}
	for _, text := range []string{c.Issuer, c.TokenURL, c.GrantsURL, c.RevokeURL, c.API} {
		if text == "" && c.Issuer != "" {
			continue
		}
		if _, err := c.parse(text); err != nil {
			faults = append(faults, err)
			break
		}
	}
	return errors.Join(faults...)
}

// call sends one request with the client's credentials and decodes the JSON of a 200 into out, if there is an out.
// The parameters are the form of a POST or the query of a GET. A redemption brings a proof, and again with the nonce that
// it is asked for.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, override, path string, params url.Values, out any) error {
	err := c.send(ctx, timeout, method, override, path, params, out)
	var refused *Error
	if !c.DPoP.IsZero() && errors.As(err, &refused) && refused.Code == useNonce {
		return c.send(ctx, timeout, method, override, path, params, out)
	}
	return err
}

func (c *Client) send(ctx context.Context, timeout time.Duration, method, override, path string, params url.Values, out any) error {
	if err := c.check(); err != nil {
		return err
	}
	text := override
	if text == "" {
		text = strings.TrimSuffix(c.Issuer, "/") + path
	}
	u, err := c.parse(text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	authorization, err := c.authorize(ctx, method, params)
	if err != nil {
		return err
	}
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(params.Encode())
	} else if len(params) > 0 {
		query := u.Query()
		for name, values := range params {
			query[name] = values
		}
		u.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return errors.New("app: malformed endpoint URL")
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	bound := !c.DPoP.IsZero() && params.Get("grant_type") == grantType
	if bound {
		proof, err := c.DPoP.proof(method, u, "", c.now())
		if err != nil {
			return err
		}
		req.Header.Set(dpop, proof)
	}
	resp, err := c.roundTrip(req)
	if err != nil {
		return err
	}
	if bound {
		c.DPoP.note(u, resp.Header)
	}
	defer resp.Body.Close()
	answer, err := read(resp)
	switch {
	case resp.StatusCode != http.StatusOK:
		return refusal(resp, answer)
	case out == nil:
		return nil
	case err != nil:
		return fmt.Errorf("app: reading the answer of %s: %w", origin(u), err)
	case len(answer) > maxAnswer:
		return fmt.Errorf("%w: longer than %d bytes", ErrProtocol, maxAnswer)
	case !isJSON(resp.Header):
		return fmt.Errorf("%w: the Content-Type is not application/json", ErrProtocol)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// read takes one byte more than an answer may have, so that the caller sees what is too long.
func read(resp *http.Response) ([]byte, error) {
	if resp.StatusCode < 200 {
		return nil, nil // 101: what follows is not HTTP and heeds no context
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
}

// roundTrip goes to the transport and past [http.Client], which would follow redirects with credentials and quote
// URLs in errors.
func (c *Client) roundTrip(req *http.Request) (*http.Response, error) {
	transport := c.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		return resp, nil
	}
	var wrapped *url.Error // of a transport that is a client itself
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return nil, fmt.Errorf("app: %s %s%s: %w", req.Method, origin(req.URL), req.URL.EscapedPath(), err)
}

// parse takes the URLs that credentials may be sent to. Its errors quote nothing but a host.
func (c *Client) parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("app: Issuer, API and endpoints are absolute https URLs")
	}
	if u.User != nil || u.Fragment != "" {
		return nil, errors.New("app: Issuer, API and endpoints are URLs without userinfo and fragment")
	}
	if u.Scheme == "http" && !c.InsecureHTTP && !loopback(u.Hostname()) {
		return nil, fmt.Errorf("app: %s is not https (see Client.InsecureHTTP)", u.Host)
	}
	return u, nil
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// origin is scheme, host and port, in one spelling.
func origin(u *url.URL) string {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" || u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		return u.Scheme + "://" + host
	}
	return u.Scheme + "://" + host + ":" + port
}

// visible reports whether s is one or more visible ASCII characters: fit for a header.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}
