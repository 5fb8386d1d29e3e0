// Command interop does the steps of ../README.md with gorilla/websocket or coder/websocket.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

const timeout = 20 * time.Second

// client is what the steps need of a library.
type client interface {
	protocol() string
	send(text []byte) error
	receive() ([]byte, error)
	ping() error
	// close ends the connection with 1000 and checks that the same code comes back.
	close() error
}

type frame struct {
	Type      string `json:"type"`
	RequestID string `json:"request_id"`
	Data      struct {
		Message  string `json:"message"`
		ClientID string `json:"client_message_id"`
	} `json:"data"`
}

func main() {
	log.SetFlags(0)
	url := os.Getenv("INTEROP_URL")
	var c client
	var err error
	switch os.Args[1] {
	case "gorilla":
		c, err = dialGorilla(url)
	case "coder":
		c, err = dialCoder(url)
	default:
		log.Fatalf("unknown client %q", os.Args[1])
	}
	check(err)
	steps(c)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func steps(c client) {
	// With room: a reader that waits for the steps would answer no pings.
	frames := make(chan frame, 1000)
	ended := make(chan error, 1)
	go func() {
		for {
			text, err := c.receive()
			if err != nil {
				ended <- err
				return
			}
			var f frame
			check(json.Unmarshal(text, &f))
			frames <- f
		}
	}()
	until := func(what string, wanted func(frame) bool) {
		deadline := time.After(timeout)
		for {
			select {
			case f := <-frames:
				if wanted(f) {
					return
				}
			case err := <-ended:
				log.Fatalf("%v while waiting for %s", err, what)
			case <-deadline:
				log.Fatalf("no %s", what)
			}
		}
	}

	until("connection_established", func(f frame) bool {
		if f.Type != "connection_established" {
			log.Fatalf("the first frame is %s", f.Type)
		}
		return true
	})
	if c.protocol() != "livechat.v1" {
		log.Fatalf("the subprotocol is %q", c.protocol())
	}
	fmt.Println("connect")

	say := func(id, message string) {
		text, err := json.Marshal(map[string]any{
			"type": "send_message",
			"data": map[string]any{"message": message, "client_message_id": id},
		})
		check(err)
		check(c.send(text))
		missing := map[string]bool{"message_sent": true, "new_message": true}
		until("message_sent and new_message of "+id, func(f frame) bool {
			if f.Data.ClientID == id {
				delete(missing, f.Type)
				if f.Type == "new_message" && f.Data.Message != message {
					log.Fatal("the text came back changed")
				}
			}
			return len(missing) == 0
		})
	}
	say("small", "Grüße, José 😀")
	fmt.Println("send\nreceive")
	say("large", strings.Repeat("x", 60_000))
	fmt.Println("large")

	check(c.ping())
	fmt.Println("ping")

	time.Sleep(6500 * time.Millisecond)
	check(c.send([]byte(`{"type":"ping","request_id":"after"}`)))
	until("pong", func(f frame) bool { return f.Type == "pong" && f.RequestID == "after" })
	fmt.Println("alive")

	// The reader must go on for the close to be seen, and takes what still comes.
	go func() {
		for range frames {
		}
	}()
	closing := make(chan error, 1)
	go func() { closing <- c.close() }()
	select {
	case err := <-closing:
		check(err)
	case <-time.After(timeout):
		log.Fatal("the close was not answered")
	}
	fmt.Println("close")
}

type overGorilla struct {
	conn   *gorilla.Conn
	pong   chan string
	closed chan error
}

func dialGorilla(url string) (client, error) {
	dialer := gorilla.Dialer{Subprotocols: []string{"livechat.v1"}, HandshakeTimeout: timeout}
	conn, _, err := dialer.Dial(url, nil)
	if err != nil {
		return nil, err
	}
	c := &overGorilla{conn, make(chan string, 1), make(chan error, 1)}
	conn.SetPongHandler(func(payload string) error {
		c.pong <- payload
		return nil
	})
	return c, nil
}

func (c *overGorilla) protocol() string { return c.conn.Subprotocol() }

func (c *overGorilla) send(text []byte) error {
	return c.conn.WriteMessage(gorilla.TextMessage, text)
}

func (c *overGorilla) receive() ([]byte, error) {
	_, text, err := c.conn.ReadMessage()
	if err != nil {
		c.closed <- err
	}
	return text, err
}

func (c *overGorilla) ping() error {
	err := c.conn.WriteControl(gorilla.PingMessage, []byte("are you there"), time.Now().Add(timeout))
	if err != nil {
		return err
	}
	select {
	case payload := <-c.pong:
		if payload != "are you there" {
			return fmt.Errorf("the pong's payload is %q", payload)
		}
		return nil
	case <-time.After(timeout):
		return fmt.Errorf("no pong")
	}
}

func (c *overGorilla) close() error {
	closing := gorilla.FormatCloseMessage(gorilla.CloseNormalClosure, "done")
	if err := c.conn.WriteControl(gorilla.CloseMessage, closing, time.Now().Add(timeout)); err != nil {
		return err
	}
	if err := <-c.closed; !gorilla.IsCloseError(err, gorilla.CloseNormalClosure) {
		return err
	}
	return c.conn.Close()
}

type overCoder struct{ conn *websocket.Conn }

func dialCoder(url string) (client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{"livechat.v1"}})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(1 << 20)
	return overCoder{conn}, nil
}

func (c overCoder) protocol() string { return c.conn.Subprotocol() }

func (c overCoder) send(text []byte) error {
	return c.conn.Write(context.Background(), websocket.MessageText, text)
}

func (c overCoder) receive() ([]byte, error) {
	_, text, err := c.conn.Read(context.Background())
	return text, err
}

func (c overCoder) ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return c.conn.Ping(ctx)
}

// Close of this library waits for the peer's close frame.
func (c overCoder) close() error { return c.conn.Close(websocket.StatusNormalClosure, "done") }
