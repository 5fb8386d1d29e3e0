package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"
)

// secret is JWT_SECRET, or what is in the file JWT_SECRET_FILE, without a line break at its end.
func secret() ([]byte, error) {
	text := os.Getenv("JWT_SECRET")
	if path := os.Getenv("JWT_SECRET_FILE"); path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text = string(content)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if len(text) < 32 {
		return nil, errors.New("JWT_SECRET needs at least 32 bytes")
	}
	return []byte(text), nil
}

// IssueToken is for a user who is signed in to the application. Sessions are the user's own; "*" alone
// is for agents and admins who may enter all of them.
func IssueToken(user, role string, sessions []string, lifetime time.Duration) (string, error) {
	key, err := secret()
	if err != nil {
		return "", err
	}
	var covered any = append([]string{}, sessions...) // nil would mean all of an agent's
	if len(sessions) == 1 && sessions[0] == "*" {
		covered = "*"
	}
	now := time.Now()
	claims := map[string]any{
		"sub":      user,
		"role":     role, // customer, agent or admin
		"sessions": covered,
		"iat":      now.Unix(),
		"exp":      now.Add(lifetime).Unix(),
	}
	if issuer := os.Getenv("JWT_ISSUER"); issuer != "" {
		claims["iss"] = issuer
	}
	if audience := os.Getenv("JWT_AUDIENCE"); audience != "" {
		claims["aud"] = audience
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(payload)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return signed + "." + encode(mac.Sum(nil)), nil
}

// The command line: go run main.go USER ROLE SECONDS [SESSION...]
func main() {
	if len(os.Args) < 4 {
		os.Stderr.WriteString("USER ROLE SECONDS [SESSION...]\n")
		os.Exit(64)
	}
	lifetime, err := time.ParseDuration(os.Args[3] + "s")
	var token string
	if err == nil {
		token, err = IssueToken(os.Args[1], os.Args[2], os.Args[4:], lifetime)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString(token + "\n")
}
