package grant

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/behest-go/behest/store"
)

// Codes and tokens are sealed: prefix, then base64url of key ID (4 bytes), nonce (24), ciphertext and tag (16).
// XChaCha20-Poly1305 takes nonces at random for as long as one likes: at 10^5 tokens a second, 192 bits last for ages.
const (
	codePrefix  = "bhsc_"
	tokenPrefix = "bhst_"

	kidSize  = 4
	headSize = kidSize + chacha20poly1305.NonceSizeX
	maxToken = 7168 // characters; a longer one is not read
)

var b64 = base64.RawURLEncoding.Strict()

// keys are derived from the root key and from the sealing keys, one for each purpose, so that nothing made for one
// opens for another.
type keys struct {
	aggregate []byte // names accounts in the store
	pairwise  []byte // names accounts to apps; never changes
	code      []sealingKey
	token     []sealingKey
	outbox    []sealingKey
	config    cipher.AEAD // the configuration, which outlives every sealing key; never changes
}

type sealingKey struct {
	id   [kidSize]byte
	aead cipher.AEAD
}

const minKey = 32

func newKeys(root Secret, sealing []Secret) (*keys, error) {
	var faults []error
	if len(root.Reveal()) < minKey {
		faults = append(faults, invalid("Key has %d bytes, want at least %d of good randomness", len(root.Reveal()), minKey))
	}
	if len(sealing) == 0 {
		sealing = []Secret{root}
	}
	k := &keys{aggregate: derive(root, nil, "behest aggregate"), pairwise: derive(root, nil, "behest pairwise")}
	var err error
	if k.config, err = chacha20poly1305.NewX(derive(root, nil, "behest seal configuration")); err != nil {
		return nil, err
	}
	// What is sealed names places that the root key has named: with another root key it opens nowhere.
	salt := derive(root, nil, "behest sealing")
	for i, s := range sealing {
		if len(s.Reveal()) < minKey && s != root {
			faults = append(faults, invalid("Sealing[%d] has %d bytes, want at least %d", i, len(s.Reveal()), minKey))
		}
		for _, p := range []struct {
			purpose string
			to      *[]sealingKey
		}{{"code", &k.code}, {"token", &k.token}, {"outbox", &k.outbox}} {
			material := derive(s, salt, "behest seal "+p.purpose)
			aead, err := chacha20poly1305.NewX(material)
			if err != nil {
				return nil, err
			}
			key := sealingKey{aead: aead}
			copy(key.id[:], derive(s, salt, "behest key id "+p.purpose))
			if p.purpose == "code" && slices.ContainsFunc(*p.to, func(other sealingKey) bool { return other.id == key.id }) {
				faults = append(faults, invalid("Sealing[%d] is a repeated key", i))
			}
			*p.to = append(*p.to, key)
		}
	}
	return k, errors.Join(faults...)
}

func derive(s Secret, salt []byte, purpose string) []byte {
	out, err := hkdf.Key(sha256.New, []byte(s.Reveal()), salt, purpose, 32)
	if err != nil {
		panic(err) // only for more than 255*32 bytes
	}
	return out
}

// seal seals with the first key.
func seal(with []sealingKey, prefix string, plain []byte) string {
	k := &with[0]
	raw := make([]byte, headSize, headSize+len(plain)+k.aead.Overhead())
	copy(raw, k.id[:])
	_, _ = rand.Read(raw[kidSize:]) // never fails (crypto/rand)
	raw = k.aead.Seal(raw, raw[kidSize:], plain, raw[:kidSize])
	return prefix + b64.EncodeToString(raw)
}

// unseal opens what seal made with any of the keys, into buf if it fits. Anything else is false, after work that does
// not depend on the store.
func unseal(with []sealingKey, prefix, sealed string, buf []byte) ([]byte, bool) {
	text, ok := strings.CutPrefix(sealed, prefix)
	if !ok || len(sealed) > maxToken {
		return nil, false
	}
	buf = buf[:cap(buf)]
	if n := b64.DecodedLen(len(text)); n > len(buf) {
		buf = make([]byte, n)
	}
	n, err := b64.Decode(buf, []byte(text))
	if err != nil || n < headSize+chacha20poly1305.Overhead {
		return nil, false
	}
	// Decode skips line breaks, which would give one token many spellings.
	if b64.EncodedLen(n) != len(text) {
		return nil, false
	}
	raw := buf[:n]
	for i := range with {
		if k := &with[i]; bytes.Equal(k.id[:], raw[:kidSize]) {
			plain, err := k.aead.Open(raw[headSize:headSize], raw[kidSize:headSize], raw[headSize:], raw[:kidSize])
			return plain, err == nil
		}
	}
	return nil, false
}

// sealConfig seals a record of the configuration as JSON. It opens under no other ID.
func (k *keys) sealConfig(id string, v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return k.config.Seal(raw, raw, plain, []byte(id)), nil
}

func (k *keys) openConfig(r *store.Record, v any) error {
	const nonce = chacha20poly1305.NonceSizeX
	if len(r.Data) < nonce {
		return fmt.Errorf("record %s %s is not whole", r.Kind, r.ID)
	}
	plain, err := k.config.Open(nil, r.Data[:nonce], r.Data[nonce:], []byte(r.ID))
	if err != nil {
		return fmt.Errorf("record %s %s was not sealed with this Key", r.Kind, r.ID)
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("record %s %s: %w", r.Kind, r.ID, err)
	}
	return nil
}

// name16 names parts under a key: 22 characters of base64url, none of them a dot.
func name16(key []byte, parts ...string) string {
	mac := hmac.New(sha256.New, key)
	var b []byte
	for _, p := range parts {
		b = appendString(b, p)
	}
	mac.Write(b)
	return b64.EncodeToString(mac.Sum(nil)[:16])
}

const name16Len = 22

// A sealedCode is what a code carries: whose grant it is for, and the secret whose hash lies with that. The name of the
// account, and not only of its aggregate: so an app gives a code back without a look.
type sealedCode struct {
	account, grant string
	secret         [32]byte
}

const codeFormat = 1

func (k *keys) sealCode(c sealedCode) string {
	b := append(append(make([]byte, 0, 128), codeFormat), c.secret[:]...)
	return seal(k.code, codePrefix, appendString(appendString(b, c.grant), c.account))
}

func (k *keys) openCode(code string) (c sealedCode, ok bool) {
	plain, ok := unseal(k.code, codePrefix, code, nil)
	if !ok || len(plain) < 1+len(c.secret) || plain[0] != codeFormat {
		return sealedCode{}, false
	}
	rest := string(plain[1+copy(c.secret[:], plain[1:]):])
	for _, s := range [...]*string{&c.grant, &c.account} {
		if *s, rest, ok = cutText(rest); !ok {
			return sealedCode{}, false
		}
	}
	if rest != "" {
		return sealedCode{}, false
	}
	return c, true
}

// A sealedToken is what a token carries: all that must be checked before a use is spent, and the versions of what
// could have been revoked.
type sealedToken struct {
	secret           [32]byte
	issued, notAfter int64     // microseconds
	versions         [2]uint64 // of the account's and of the app's revocations
	uses             int64     // as granted; Unlimited
	aggregate        string
	grant            string
	here             string // the ID, within the aggregate, of the app's revocations in this root domain
	account, app     string
	domain, actions  string // actions joined by spaces
	trigger          string
	operation        string
	event            string

	// What nearly no token has: the others are of a format without it.
	deeper    int    // how many tokens may still be derived from it, one of the other
	key       string // the thumbprint of the key that it is bound to; empty: to none
	delegates string // the apps that may exchange it, joined by spaces
	parents   string // what it is derived from, the last one first; see links
}

const tokenFormat, tokenFormatMore = 1, 2

// ordinary reports whether a use needs no more than the token's own records.
func (t *sealedToken) ordinary() bool { return t.key == "" && t.parents == "" }

// texts are the strings that all tokens have, after the names of records. The app is in the grant's ID.
func (t *sealedToken) texts() [6]*string {
	return [...]*string{&t.account, &t.domain, &t.actions, &t.trigger, &t.operation, &t.event}
}

func (t *sealedToken) more() [3]*string { return [...]*string{&t.key, &t.delegates, &t.parents} }

func (k *keys) sealToken(t *sealedToken) string {
	b := append(make([]byte, 0, 512), tokenFormat)
	if !t.ordinary() || t.delegates != "" || t.deeper != deriveDepth {
		b[0] = tokenFormatMore
	}
	b = append(b, t.secret[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.issued))
	b = binary.BigEndian.AppendUint64(b, uint64(t.notAfter))
	b = binary.AppendUvarint(b, t.versions[0])
	b = binary.AppendUvarint(b, t.versions[1])
	b = binary.AppendVarint(b, t.uses)
	for _, s := range [...]string{t.aggregate, t.grant, t.here} {
		b = appendString(b, s)
	}
	for _, s := range t.texts() {
		b = appendString(b, *s)
	}
	if b[0] == tokenFormatMore {
		b = binary.AppendUvarint(b, uint64(t.deeper))
		for _, s := range t.more() {
			b = appendString(b, *s)
		}
	}
	return seal(k.token, tokenPrefix, b)
}

// An openedToken is what a seal held, as far as it is no text yet: that is still where it was decoded.
type openedToken struct {
	format                 byte
	aggregate, grant, here []byte
	texts                  []byte // all the others, each with its length
}

// openHead takes from a token what is no text. It decodes into buf, if the token fits there.
func (k *keys) openHead(token string, t *sealedToken, buf []byte) (o openedToken, ok bool) {
	b, ok := unseal(k.token, tokenPrefix, token, buf)
	if !ok || len(b) < 1+32+16 || b[0] != tokenFormat && b[0] != tokenFormatMore {
		return o, false
	}
	o.format = b[0]
	copy(t.secret[:], b[1:33])
	t.issued = int64(binary.BigEndian.Uint64(b[33:]))
	t.notAfter = int64(binary.BigEndian.Uint64(b[41:]))
	b = b[49:]
	for i := range t.versions {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return o, false
		}
		t.versions[i], b = v, b[n:]
	}
	uses, n := binary.Varint(b)
	if n <= 0 {
		return o, false
	}
	t.uses, b = uses, b[n:]
	for _, s := range [...]*[]byte{&o.aggregate, &o.grant, &o.here} {
		if *s, b, ok = cutText(b); !ok {
			return o, false
		}
	}
	o.texts = b
	return o, true
}

// setNames sets the names that lie in the IDs of records, and the app, which lies in that of the grant.
func (t *sealedToken) setNames(aggregate, grant, here string) bool {
	if len(grant) <= name16Len {
		return false
	}
	t.aggregate, t.grant, t.here = aggregate, grant, here
	t.app = strings.ReplaceAll(grant[name16Len+1:], "~", ".")
	return true
}

// setTexts sets all the others: the strings become parts of text.
func (t *sealedToken) setTexts(format byte, text string) (ok bool) {
	for _, s := range t.texts() {
		if *s, text, ok = cutText(text); !ok {
			return false
		}
	}
	t.deeper, t.key, t.delegates, t.parents = deriveDepth, "", "", ""
	if format == tokenFormat {
		return text == ""
	}
	deeper, n := uvarint(text)
	if n <= 0 || deeper > maxDeriveDepth {
		return false
	}
	t.deeper, text = int(deeper), text[n:]
	for _, s := range t.more() {
		if *s, text, ok = cutText(text); !ok {
			return false
		}
	}
	_, ok = t.links()
	return ok && text == ""
}

// openToken opens all of a token.
func (k *keys) openToken(token string, t *sealedToken) bool {
	o, ok := k.openHead(token, t, nil)
	return ok && t.setAll(&o)
}

func (t *sealedToken) setAll(o *openedToken) bool {
	return t.setNames(string(o.aggregate), string(o.grant), string(o.here)) && t.setTexts(o.format, string(o.texts))
}

// cutText takes one text, with its length before it, from the front.
func cutText[T string | []byte](s T) (first, rest T, ok bool) {
	size, n := uint64(0), 1
	if len(s) > 0 && s[0] < 0x80 { // nearly always
		size = uint64(s[0])
	} else {
		size, n = uvarint(s)
	}
	if n <= 0 || len(s) < n || uint64(len(s)-n) < size {
		return first, rest, false
	}
	return s[n : n+int(size)], s[n+int(size):], true
}

func uvarint[T string | []byte](s T) (uint64, int) {
	var v uint64
	for i := 0; i < len(s) && i < binary.MaxVarintLen64; i++ {
		v |= uint64(s[i]&0x7f) << (7 * i)
		if s[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

func micros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func newSecret() (s [32]byte) {
	_, _ = rand.Read(s[:]) // never fails
	return s
}

func hashOf(secret []byte) string {
	sum := sha256.Sum256(secret)
	return b64.EncodeToString(sum[:])
}

var errSealed = fmt.Errorf("%w: not sealed by this server", ErrUnknown)
