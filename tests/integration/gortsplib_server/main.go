// A camera of gortsplib, the RTSP library of MediaMTX; started by gortsplib_camera.py.
//
//	gortsplib_server -codec h264|h265|jpeg -units FILE -span TICKS [-user U -password P -method md5|sha-256|basic]
//	                 [-zero-tid]
//
// FILE has an access unit a line: {"pts": 90 kHz ticks, "nals": [base64, …]}, of JPEG one "NAL", the image. They are
// sent at their own pace, again and again, TICKS apart, to everybody at once. Listens on a free port of 127.0.0.1,
// serves every path but /none, prints a line "port N", and ends when its input closes.
//
// This version of the library, like others before 4.16, gives aggregates of H.265 the temporal id 0, which RFC 7798
// forbids and libav refuses. It is set right unless -zero-tid is given.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/bluenviron/gortsplib/v4"
	"github.com/bluenviron/gortsplib/v4/pkg/auth"
	"github.com/bluenviron/gortsplib/v4/pkg/base"
	"github.com/bluenviron/gortsplib/v4/pkg/description"
	"github.com/bluenviron/gortsplib/v4/pkg/format"
	"github.com/bluenviron/gortsplib/v4/pkg/headers"
	"github.com/pion/rtp"
)

const (
	ticksPerSecond         = 90_000
	aggregateH265          = 48
	typeShiftH265          = 1
	temporalIDPlusOne      = 1
	typeMaskH265      byte = 0x3F
)

type unit struct {
	Pts  int64
	Nals [][]byte
}

type encoder func(nals [][]byte) ([]*rtp.Packet, error)

var methods = map[string]headers.AuthMethod{
	"md5": headers.AuthDigestMD5, "sha-256": headers.AuthDigestSHA256, "basic": headers.AuthBasic,
}

// handler says yes to everybody who knows the password, and no to /none.
type handler struct {
	stream         *gortsplib.ServerStream
	user, password string
	methods        []headers.AuthMethod
	nonce          string
}

func (h *handler) refusal(request *base.Request, path string) *base.Response {
	if h.user != "" && auth.Validate(request, h.user, h.password, nil, h.methods, "gortsplib", h.nonce) != nil {
		challenge := auth.GenerateWWWAuthenticate(h.methods, "gortsplib", h.nonce)
		return &base.Response{StatusCode: base.StatusUnauthorized, Header: base.Header{"WWW-Authenticate": challenge}}
	}
	if path == "/none" {
		return &base.Response{StatusCode: base.StatusNotFound}
	}
	return nil
}

func (h *handler) OnDescribe(
	ctx *gortsplib.ServerHandlerOnDescribeCtx,
) (*base.Response, *gortsplib.ServerStream, error) {
	if no := h.refusal(ctx.Request, ctx.Path); no != nil {
		return no, nil, nil
	}
	return &base.Response{StatusCode: base.StatusOK}, h.stream, nil
}

func (h *handler) OnSetup(ctx *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if no := h.refusal(ctx.Request, ctx.Path); no != nil {
		return no, nil, nil
	}
	return &base.Response{StatusCode: base.StatusOK}, h.stream, nil
}

func (h *handler) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func read(path string) []unit {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	var units []unit
	decoder := json.NewDecoder(bufio.NewReader(file))
	for {
		var each unit
		if err := decoder.Decode(&each); err == io.EOF {
			return units
		} else if err != nil {
			log.Fatal(err)
		}
		units = append(units, each)
	}
}

// payload gives the RTP format of a codec, and what makes packets of an access unit. Parameter sets are in the units.
func payload(codec string, zeroTID bool) (format.Format, encoder) {
	switch codec {
	case "h264":
		forma := &format.H264{PayloadTyp: 96, PacketizationMode: 1}
		made, err := forma.CreateEncoder()
		if err != nil {
			log.Fatal(err)
		}
		return forma, made.Encode
	case "h265":
		forma := &format.H265{PayloadTyp: 97}
		made, err := forma.CreateEncoder()
		if err != nil {
			log.Fatal(err)
		}
		if zeroTID {
			return forma, made.Encode
		}
		return forma, func(nals [][]byte) ([]*rtp.Packet, error) {
			packets, err := made.Encode(nals)
			for _, packet := range packets {
				if packet.Payload[0]>>typeShiftH265&typeMaskH265 == aggregateH265 {
					packet.Payload[1] = temporalIDPlusOne
				}
			}
			return packets, err
		}
	case "jpeg":
		forma := &format.MJPEG{}
		made, err := forma.CreateEncoder()
		if err != nil {
			log.Fatal(err)
		}
		return forma, func(nals [][]byte) ([]*rtp.Packet, error) { return made.Encode(nals[0]) }
	}
	log.Fatalf("there is no codec %q", codec)
	return nil, nil
}

func send(stream *gortsplib.ServerStream, media *description.Media, units []unit, span int64, encode encoder) {
	began := time.Now()
	for round := int64(0); ; round++ {
		for _, each := range units {
			ticks := round*span + each.Pts
			time.Sleep(time.Until(began.Add(time.Duration(ticks) * time.Second / ticksPerSecond)))
			packets, err := encode(each.Nals)
			if err != nil {
				log.Fatal(err)
			}
			for _, packet := range packets {
				packet.Timestamp = uint32(ticks)
				if err := stream.WritePacketRTP(media, packet); err != nil {
					log.Fatal(err)
				}
			}
		}
	}
}

func main() {
	codec := flag.String("codec", "h264", "")
	path := flag.String("units", "", "")
	span := flag.Int64("span", 0, "")
	user := flag.String("user", "", "")
	password := flag.String("password", "", "")
	zeroTID := flag.Bool("zero-tid", false, "")
	method := flag.String("method", "md5", "")
	flag.Parse()

	units := read(*path)
	forma, encode := payload(*codec, *zeroTID)
	nonce, err := auth.GenerateNonce()
	if err != nil {
		log.Fatal(err)
	}
	h := &handler{user: *user, password: *password, methods: []headers.AuthMethod{methods[*method]}, nonce: nonce}
	ports := make(chan int, 1)
	server := &gortsplib.Server{
		Handler:     h,
		RTSPAddress: "127.0.0.1:0",
		Listen: func(network string, address string) (net.Listener, error) {
			listener, err := net.Listen(network, address)
			if err == nil {
				ports <- listener.Addr().(*net.TCPAddr).Port
			}
			return listener, err
		},
	}
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	media := &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{forma}}
	h.stream = gortsplib.NewServerStream(server, &description.Session{Medias: []*description.Media{media}})
	go send(h.stream, media, units, *span, encode)
	fmt.Println("port", <-ports)
	io.Copy(io.Discard, os.Stdin)
}
