// Measures what the browser decoded: every video frame shown and every audio sample that would be heard.
// Started by the tests with window.probe(); nothing of it is part of the page.
window.peers = [];
window.RTCPeerConnection = class extends window.RTCPeerConnection {
  constructor(...options) {
    super(...options);
    window.peers.push(this);
  }
};

// What WebRTC says about the received streams: {audio: {...}, video: {...}}.
window.inbound = async () => {
  const found = {};
  (await window.peers.at(-1).getStats()).forEach((stat) => { if (stat.type === "inbound-rtp") found[stat.kind] = stat; });
  return found;
};

window.probe = async () => {
  const video = document.querySelector('[data-testid="agent-video"]');
  const [W, H] = [84, 48];
  const canvas = new OffscreenCanvas(W, H);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const frames = [];
  let previous = null;

  // The brightest columns of the picture's upper part: where the stand-in's white block is.
  const blockCentre = (data) => {
    let sum = 0, weight = 0;
    for (let y = 12; y < 16; y++) {
      for (let x = 0; x < W; x++) {
        if (data[4 * (y * W + x) + 1] > 150) { sum += x + 0.5; weight++; }
      }
    }
    return weight ? sum / weight / W : null;
  };

  const onFrame = (now, meta) => {
    context.drawImage(video, 0, 0, W, H);
    const data = context.getImageData(0, 0, W, H).data;
    let mean = 0, change = 0;
    for (let i = 0; i < data.length; i += 4) {
      mean += data[i] + data[i + 1] + data[i + 2];
      if (previous) change += Math.abs(data[i] - previous[i]) + Math.abs(data[i + 1] - previous[i + 1]) + Math.abs(data[i + 2] - previous[i + 2]);
    }
    const n = (data.length / 4) * 3;
    frames.push({ t: now, presented: meta.presentedFrames, rtp: meta.rtpTimestamp, mean: mean / n,
      change: previous ? change / n : null, block: blockCentre(data), width: meta.width, height: meta.height });
    previous = data;
    video.requestVideoFrameCallback(onFrame);
  };
  video.requestVideoFrameCallback(onFrame);

  const audio = new AudioContext({ sampleRate: 48000 });
  const code = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([input]) { if (input[0]) this.port.postMessage(input[0].slice()); return true; } })`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const tap = new AudioWorkletNode(audio, "tap", { channelCount: 1, channelCountMode: "explicit" });
  const chunks = [];
  tap.port.onmessage = ({ data }) => chunks.push(data);
  audio.createMediaStreamSource(new MediaStream(video.srcObject.getAudioTracks())).connect(tap).connect(audio.destination);

  window.probeResult = () => {
    const samples = new Int16Array(chunks.length * 128);
    chunks.forEach((chunk, i) => chunk.forEach((x, j) => { samples[128 * i + j] = Math.max(-1, Math.min(1, x)) * 32767; }));
    const bytes = new Uint8Array(samples.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return { frames, audio: btoa(text) };
  };
  return audio.state;
};
